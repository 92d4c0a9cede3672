"""The lock of a folder that a verb writes into: two runs never write into one."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sae_core import locks
from sae_core.errors import UserError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block no other process locks `folder`; raises `UserError` that says which one has."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.locked(folder / LOCK))
        except locks.Taken as error:
            raise UserError(f"{folder} is written by {error}; wait for its end, or give another --out") from error
        yield
