"""A cache changes no number, belongs to one stream, and is never half a block."""

import json
import os
import resource
import signal
from dataclasses import replace

import pytest
import torch
from streams import make_stream, same
from tiny import user_error

from sae_core.data.activation_cache import CachedStream, disk_bytes, kept_in
from sae_core.data.activations import ActivationStream
from sae_core.files import write_tensors
from sae_core.locks import locked
from sae_core.sites import Site, Stream


@pytest.fixture(scope="module")
def model(tiny_models):
    return tiny_models["neox"]


@pytest.fixture
def stream(model):
    return make_stream(model)


class Unharvested(ActivationStream):
    """A stream that cannot harvest."""

    def rows(self, block: int, n=None):
        raise AssertionError("harvested although it was there")


def unharvested(stream: ActivationStream) -> Unharvested:
    how = (stream.seed, stream.batch, stream.budget, stream.at_once)
    return Unharvested(stream.model, stream.contexts, stream.sites, *how)


def equal(a, b) -> bool:
    a, b = list(a), list(b)
    return len(a) == len(b) > 0 and all(same(x, y) for x, y in zip(a, b, strict=True))


def test_a_cached_stream_gives_the_same_numbers_when_it_writes_and_when_it_reads(stream, tmp_path):
    for number in (0, 1, 5):
        assert equal(CachedStream(stream, tmp_path).block(number), stream.block(number))
    reading = CachedStream(unharvested(stream), tmp_path)
    for number in (5, 0, 1):
        assert equal(reading.block(number), stream.block(number))
    with pytest.raises(AssertionError, match="harvested"):  # control: block 2 was never asked for
        list(reading.block(2))
    assert (reading.sites, reading.batch) == (stream.sites, stream.batch)


def test_a_block_of_which_little_is_used_is_kept_whole(model, stream, tmp_path):
    few = replace(stream, budget=1, batch=32, at_once=2)
    wanted = list(few.block(1, steps=1))
    assert few.n_contexts(1, 1) < few.block_contexts
    assert equal(CachedStream(few, tmp_path).block(1, steps=1), wanted)
    assert equal(CachedStream(unharvested(few), tmp_path).block(1, steps=1), wanted)
    assert equal(CachedStream(unharvested(few), tmp_path).block(1), few.block(1))


def test_what_is_read_is_what_lies_there(stream, tmp_path):
    """Control: numbers come from the file."""
    from safetensors.torch import load_file, save_file

    cached = CachedStream(stream, tmp_path)
    list(cached.block(0))
    path = tmp_path / "block-00000.safetensors"
    save_file({name: x + 1 for name, x in load_file(path).items()}, path)
    for kept, fresh in zip(cached.block(0), stream.block(0), strict=True):
        assert all(torch.equal(kept[site], fresh[site] + 1) for site in stream.sites)


def test_an_interrupted_block_leaves_a_whole_file(stream, tmp_path):
    next(CachedStream(stream, tmp_path).block(0))
    assert equal(CachedStream(unharvested(stream), tmp_path).block(0), stream.block(0))


def test_runs_with_other_batches_share_a_cache(stream, tmp_path):
    list(CachedStream(stream, tmp_path).block(0))
    other = replace(stream, batch=32)
    assert other.block_contexts == stream.block_contexts
    assert equal(CachedStream(unharvested(other), tmp_path).block(0), other.block(0))


def test_what_a_cache_takes_on_disk_is_known_before(stream, tmp_path):
    cached, n_blocks = CachedStream(stream, tmp_path), 4
    tokens = sum(len(batch[Site(0)]) for number in range(n_blocks) for batch in cached.block(number))
    written = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert disk_bytes(stream, tokens) == pytest.approx(written, rel=0.05)
    assert disk_bytes(stream, 10 * tokens) > 9 * written


# ---- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "change"),
    [
        ("seed", {"seed": 4}),
        ("sites", {"sites": (Site(0),), "budget": 2**15}),
        ("sites", {"sites": (Site(2, Stream.MLP_OUT), Site(0))}),
        ("contexts per block", {"budget": 2**17}),
        ("text", {"contexts": torch.full((40, 12), 7)}),
    ],
)
def test_a_cache_of_something_else_is_refused(stream, tmp_path, word, change):
    CachedStream(stream, tmp_path)
    before = (tmp_path / "cache.json").read_text()
    with user_error(str(tmp_path), f"other {word};", "another folder"):
        CachedStream(replace(stream, **change), tmp_path)
    assert (tmp_path / "cache.json").read_text() == before
    CachedStream(stream, tmp_path)


def test_a_cache_of_another_model_is_refused(stream, tmp_path, tiny_models):
    CachedStream(stream, tmp_path)
    with user_error("other model config, model weights, seed;"):
        CachedStream(replace(stream, model=tiny_models["gpt2"], seed=4), tmp_path)


def test_a_cache_of_another_version_or_without_card_is_refused(stream, tmp_path):
    list(CachedStream(stream, tmp_path).block(0))
    path = tmp_path / "cache.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 99}))
    with user_error("other version"):
        CachedStream(stream, tmp_path)
    path.write_text("{")
    with user_error(str(path), "damaged"):
        CachedStream(stream, tmp_path)
    path.unlink()
    with user_error("cache.json", "another folder"):
        CachedStream(stream, tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_damaged_block_is_named(stream, tmp_path, keep):
    cached = CachedStream(stream, tmp_path)
    list(cached.block(0))
    path = tmp_path / "block-00000.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with user_error(str(path), "damaged", "delete it"):
        next(cached.block(0))
    path.unlink()
    assert equal(cached.block(0), stream.block(0))


def test_a_block_with_other_rows_is_named(stream, tmp_path):
    cached = CachedStream(stream, tmp_path)
    list(cached.block(0))
    list(cached.block(1))
    path = tmp_path / "block-00001.safetensors"
    assert stream.model.content(stream.tokens(0)).sum() != stream.model.content(stream.tokens(1)).sum()
    path.write_bytes((tmp_path / "block-00000.safetensors").read_bytes())
    with user_error(str(path), "damaged", "delete it"):
        next(cached.block(1))


def test_a_full_disk_leaves_nothing_half_written(stream, tmp_path):
    """Simulated by a limit on the size of files, which the writer meets inside the block."""
    cached = CachedStream(stream, tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written: .*block-00000.safetensors"):
            next(cached.block(0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]
    assert equal(cached.block(0), stream.block(0))


def test_a_folder_that_cannot_be_written(stream, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=f"could not be written: .*{tmp_path / 'file'}"):
        CachedStream(stream, tmp_path / "file")
    with pytest.raises(OSError, match=f"could not be written: .*{tmp_path / 'file'}"):
        CachedStream(stream, tmp_path / "file" / "deeper")


# ---- several processes -----------------------------------------------------------------------------


def test_rows_in_half_precision_are_rounded_once(stream, tmp_path):
    cached = CachedStream(stream, tmp_path, "bfloat16")
    written = list(cached.block(0))
    assert equal(CachedStream(unharvested(stream), tmp_path).block(0), written)  # the folder says how it keeps them
    for kept, exact in zip(written, stream.block(0), strict=True):
        assert all(torch.equal(kept[site], x.bfloat16().float()) for site, x in exact.items())
    assert not equal(written, stream.block(0))  # control
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    tokens = sum(len(batch[Site(0)]) for batch in written)
    assert disk_bytes(stream, tokens, "bfloat16") == pytest.approx(size, rel=0.1)
    with user_error("other precision", "another folder"):
        CachedStream(stream, tmp_path, "float32")
    file = tmp_path / "block-00000.safetensors"
    write_tensors(file, {str(site): x.float() for site, x in CachedStream(stream, tmp_path)._read(0).items()})
    with user_error("does not hold this block"):  # one that was written in another precision
        next(CachedStream(stream, tmp_path).block(0))
    assert kept_in(tmp_path) == "bfloat16" and kept_in(tmp_path / "none") == "float32"


def test_a_block_that_another_process_is_at_is_left_to_it_until_that_is_gone(stream, tmp_path):
    cached = CachedStream(stream, tmp_path)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:  # it claims block 1 and never writes it
        with locked(cached.path(1).with_suffix(".lock")):
            os.write(writes, b"1")
            signal.pause()
        os._exit(0)
    assert os.read(reads, 1) == b"1"
    assert cached.fill(0) and not cached.fill(0) and not cached.fill(1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert cached.fill(1)
    assert equal(CachedStream(unharvested(stream), tmp_path).block(1), stream.block(1))
    assert not [*tmp_path.glob("*.lock")]
