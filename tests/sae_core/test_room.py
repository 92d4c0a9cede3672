"""Room in memory and on disk, asked for before work begins."""

import errno
import os

import pytest
import torch
from tiny import user_error

from sae_core.room import check_disk, check_memory, in_words, memory_of, out_of_memory

CPU = torch.device("cpu")


def test_what_fits_is_let_through_and_what_does_not_names_the_bytes_and_the_way_out(tmp_path):
    size = memory_of(CPU)
    assert size is None or size > 2**28  # torch would not have been imported
    check_memory(1, CPU, "a test", "give less")
    check_disk(1, tmp_path, "a test", "give less")
    with user_error("not enough room", "a test", "8 PiB", str(tmp_path), "give less"):
        check_disk(2**53, tmp_path, "a test", "give less")
    if size is not None:
        with user_error("not enough memory", "9,007,199,254,740,992 bytes", in_words(size), "give less"):
            check_memory(2**53, CPU, "a test", "give less")


@pytest.mark.parametrize(("size", "words"), [(0, "0 bytes"), (1023, "1.02e+03 bytes"), (3 * 2**29, "1.5 GiB")])
def test_bytes_in_words(size, words):
    assert in_words(size) == words


def test_what_torch_says_where_memory_runs_out_is_known():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**62, dtype=torch.uint8)
    assert out_of_memory(refused.value)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not out_of_memory(other.value) and out_of_memory(MemoryError())
    assert out_of_memory(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "x.bin"))
    assert out_of_memory(ImportError("libx.so: failed to map segment from shared object"))
    assert not out_of_memory(OSError(errno.ENOENT, os.strerror(errno.ENOENT), "memory/x.bin"))
