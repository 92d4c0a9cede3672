"""The lock of a folder that a verb writes into: two runs never write into one.

It is the system's lock on a file (`flock`), which goes with its process, however that ends: none is ever stale, whether
the number of the process is another's by now, the clock was moved, or the machine started anew. What the file says is
for people.
"""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sae_core.errors import UserError

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What file systems without locks answer; there, and on Windows, nothing keeps two runs apart."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block no other process locks `folder`; raises `UserError` that says which one has."""
    path = folder / LOCK
    descriptor = _open_locked(path)
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
            raise UserError(f"{path.parent} is written by {owner}; wait for its end, or give another --out") from error
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # its owner removed it between our opening and our locking
