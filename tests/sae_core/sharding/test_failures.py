"""A rank that hangs, or ends, is named, in one line, by one of those that are left."""

import socket

import pytest
from failing_ranks import work
from ranked import fresh

from sae_core.sharding.control import default_shards
from sae_core.sharding.ranks import Ranks


@pytest.mark.slow
@pytest.mark.parametrize(("how", "shards", "replicas"), [("hangs", 2, 2), ("ends", 3, 1)])
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
