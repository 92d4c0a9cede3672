"""Locks between processes: the system's lock on a file (`flock`), which goes with its process, however that ends.

None is ever stale, whether the number of the process is another's by now, the clock was moved, or the machine started
anew. What the file says is for people. Two runs never write into one folder (`subrank/cli/lock.py`), and processes that
fill a cache together each take other blocks (`sae_core/data/activation_cache.py`).
"""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What file systems without locks answer; there, and on Windows, nothing keeps two processes apart."""


class Taken(Exception):
    """Another process has the lock; the text says which."""


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Within the block no other process locks the file `path`, which is gone afterwards.

    Raises `Taken` where another process has it; or waits for that to end.
    """
    while True:
        try:
            descriptor = _open_locked(path)
            break
        except Taken:
            if not wait:
                raise
            time.sleep(0.01)
    try:
        owner = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        with suppress(OSError):  # a file that another user's run left may only be read
            os.ftruncate(descriptor, 0)
            os.write(descriptor, owner.encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is locked: whoever opened this very file sees that it is gone
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except PermissionError:
            if not path.exists():
                raise
            descriptor = os.open(path, os.O_RDONLY)
        try:
            import fcntl
        except ImportError:  # on Windows
            return descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor
            owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise Taken(owner) from error
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # its owner removed it between our opening and our locking
