"""Temporary names beside what is being written, which say whose they are: those of dead processes can be swept.

A name reads `.partial-MACHINE-PID-...`: numbers of processes mean the same where MACHINE does, which is a digest of the
host, of its last start and of the container.
"""

import hashlib
import os
import shutil
import socket
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

_PREFIX = ".partial-"


def partial_file(folder: Path) -> Path:
    """A new empty file in `folder`, under a temporary name of this process."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=_prefix())
    os.close(handle)
    return Path(name)


def partial_folder(folder: Path) -> Path:
    """A new empty folder in `folder`, under a temporary name of this process."""
    return Path(tempfile.mkdtemp(dir=folder, prefix=_prefix()))


def final(path: Path) -> Path:
    """The name under which what is written at `path` appears in the end."""
    return Path(*(part for part in path.parts if not part.startswith(_PREFIX)))


def sweep(folder: Path) -> None:
    """Remove what dead processes of this machine have left half-written in `folder`; what living ones write stays."""
    for path in folder.glob(f"{_PREFIX}*"):
        machine, pid, *_ = [*path.name.removeprefix(_PREFIX).split("-"), ""]
        if os.name != "nt" and machine == _machine() and pid.isdecimal() and not _lives(int(pid)):
            with suppress(OSError):  # another process may be sweeping as well
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _prefix() -> str:
    return f"{_PREFIX}{_machine()}-{os.getpid()}-"


@cache
def _machine() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):  # there is no /proc but on Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's, or no number of a process
        return True
    return True
