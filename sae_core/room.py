"""Room for what is to be made, in memory and on disk: a message before work begins, where there is too little."""

import re
import shutil
from contextlib import suppress
from pathlib import Path

import torch

from sae_core.errors import UserError

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much a container may take; a file that holds no number sets no limit."""
_RAN_OUT = re.compile("memory|bad_alloc|ALLOC_FAILED|Storage size calculation overflowed|can't start new thread")
"""What torch, and the libraries below it, say where memory runs out."""
_SYSTEM = re.compile("Cannot allocate memory|failed to map segment")
"""What the system says, of files and of libraries that do not fit either."""
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def memory_of(device: torch.device) -> int | None:
    """Bytes that a process may have there, used ones included; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    sizes = []
    with suppress(ImportError, OSError, ValueError):  # not on Windows
        import os
        import resource

        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        sizes.append(resource.getrlimit(resource.RLIMIT_AS)[0])
    for place in _LIMITS:
        with suppress(OSError, ValueError):
            sizes.append(int(Path(place).read_text()))
    return min((size for size in sizes if size > 0), default=None)  # -1: no limit


def check_memory(needed: int, device: torch.device, what: str, way_out: str) -> None:
    """Raise `UserError` where `what` needs more bytes than the device has."""
    size = memory_of(device)
    if size is not None and needed > size:
        raise UserError(
            f"not enough memory: {what} needs at least {in_words(needed)} ({needed:,} bytes), "
            f"and {'this machine' if device.type == 'cpu' else device} has {in_words(size)}; {way_out}"
        )


def out_of_memory(error: Exception) -> str:
    """What an error says, in one line, where it is that memory ran out; else nothing."""
    line = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError):
        return line or "Python could take no more"
    return line if (_RAN_OUT if isinstance(error, RuntimeError) else _SYSTEM).search(line) else ""


def check_disk(needed: int, folder: Path, what: str, way_out: str) -> None:
    """Raise `UserError` where `what` needs more bytes than are free in a folder that exists."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"not enough room on disk: {what} needs at least {in_words(needed)} ({needed:,} bytes), and {folder} "
            f"has {in_words(free)} free; {way_out}"
        )


def in_words(size: int) -> str:
    """A number of bytes, `4.8 TiB`."""
    power = min(max(0, size.bit_length() - 1) // 10, len(_UNITS) - 1)
    return f"{size / 2 ** (10 * power):.3g} {_UNITS[power]}"
