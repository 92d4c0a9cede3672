"""What is left on the disk when a process is killed, or has no room for more, at each moment.

Python announces what is about to happen to files (`sys.addaudithook`), so that all moments between two changes can be
tried. A hook stays for good, so it is added in a forked child. There a kill is an exception that every later change
raises as well: whatever tries to tidy up changes nothing.
"""

import errno
import os
import pickle
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.fsync"}
_REMOVALS = {"os.remove", "os.rmdir"}
WHOLE, NAMED = "whole", "named"


class Killed(BaseException):
    """The process is dead."""


def kill(event: str) -> None:
    """At a change on the disk: the process has been killed."""
    raise Killed


def fill_disk(event: str) -> None:
    """At a change on the disk: it is full."""
    if event not in _REMOVALS:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def at_every_moment(
    happen: Callable[[str], None], action: Callable[[], Any], prepare: Callable[[], Any], look: Callable[[], Any]
) -> list[tuple[str, Any]]:
    """How `action` ends, and what `look` then returns, if `happen` comes at its first change on the disk, second, ...

    Each time after `prepare`. The last time `action` is through before. It ends `WHOLE`, with the name of an exception,
    or `NAMED`: with an error of the system that names a file, and no temporary one.
    """
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(writes, "wb") as pipe:
            try:
                pickle.dump(_seen(happen, action, prepare, look), pipe)
            except BaseException as error:
                pickle.dump(f"{type(error).__name__}: {error}", pipe)
        os._exit(0)  # nothing of the parent's is closed by the child
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        seen = pickle.load(pipe)
    os.waitpid(child, 0)
    assert isinstance(seen, list), seen
    return seen


def _seen(happen, action, prepare, look) -> list[tuple[str, Any]]:
    left = [0]  # changes until it happens; none are counted at 0

    def watch(event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if left[0] and (writes or event in _CHANGES):
            left[0] = max(1, left[0] - 1)
            if left[0] == 1:
                happen(event)

    sys.addaudithook(watch)
    # what a file holds has been written, or not: asking the disk for it takes most of the time
    os.fsync = lambda descriptor: watch("os.fsync", ())
    seen = []
    for change in count(1):
        prepare()
        left[0], end = change + 1, WHOLE
        try:
            action()
        except BaseException as error:
            name = str(getattr(error, "filename", None) or "partial")
            end = type(error).__name__ if "partial" in name else NAMED
        left[0] = 0
        seen.append((end, look()))
        if end is WHOLE:
            break
    return seen


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, by its place."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
