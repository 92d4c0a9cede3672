"""A rank that hangs, or ends, is named, in one line, by one of those that are left."""

import socket

import pytest
import torch
from failing_ranks import work
from ranked import fresh
from tiny import user_error

from sae_core.model.device import usable
from sae_core.sharding import choice
from sae_core.sharding.control import default_shards, join
from sae_core.sharding.ranks import ALONE, Ranks


@pytest.mark.slow
@pytest.mark.parametrize(("how", "shards", "replicas"), [("hangs", 2, 2), ("ends", 3, 1), ("ends", 2, 2)])
def test_a_rank_that_does_not_answer_is_named_once(tmp_path, how, shards, replicas):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = shards * replicas
    processes = [fresh(work, rank, port, tmp_path, how, shards, replicas) for rank in range(size)]
    others = [rank for rank in range(size) if rank != 1]
    for rank in others:
        processes[rank].join(30)
    processes[1].kill()
    said = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert said.keys() == {f"{rank}-{'is silent' if rank else 'says'}" for rank in others}
    assert all(line.startswith("rank 1 was ended, or has not answered for 2 s") for line in said.values())


def test_latents_are_spread_unless_replicas_move_fewer_bytes():
    assert default_shards(8, 2**17, 8192) == 8
    assert default_shards(8, 2**17, 2**18) == 2  # four replicas see 2^16 tokens each, which is below 2 n / 2
    assert default_shards(8, 2**11, 2**14) == 1
    assert default_shards(4, 40, 64) == 2  # 3 blocks of 16


@pytest.mark.parametrize("n_latents", [64, 203, 1537, 2**20])
@pytest.mark.parametrize("shards", [1, 2, 3, 4])
def test_every_latent_is_in_one_shard(n_latents, shards):
    parts = [Ranks(shards).latents(n_latents, shard) for shard in range(shards)]
    assert [latent for part in parts for latent in part] == [*range(n_latents)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 32


def test_every_rank_has_as_many_latents_as_are_active():
    assert [default_shards(4, 128, 16, k) for k in (1, 32, 40, 70)] == [4, 4, 2, 1]


PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999", "RANK": "1", "WORLD_SIZE": "2"}


@pytest.mark.parametrize("name", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_what_torchrun_would_have_set_is_named(name):
    with user_error(f"and {name} is missing or no number; start them with torchrun"):
        join("cpu", {key: value for key, value in PLACE.items() if key != name})


def test_a_rank_that_never_starts_is_an_error_of_one_line():
    with user_error("rank 0 has not met all of 2 processes at 127.0.0.1:"):
        join("cpu", PLACE | {"RANK": "0", "MASTER_PORT": "0"}, patience=0.3)


@pytest.mark.parametrize(("device", "said"), [("mps", "--device mps is for one process"), ("cuda", "cannot be used")])
def test_a_device_that_ranks_cannot_use_is_refused(device, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("sae_core.sharding.control.usable", lambda name: usable("cuda:999"))
    with user_error(said):
        join(device, PLACE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_negative_zero_is_no_large_number(dtype, monkeypatch):
    monkeypatch.setattr(choice, "added", lambda counts, group: counts)
    values = torch.tensor([-0.0, 3.0, 1.0, -0.0, 2.0], dtype=dtype)
    assert [choice.kth_largest(ALONE, values, count).item() for count in (1, 2, 3, 4)] == [3.0, 2.0, 1.0, 0.0]
