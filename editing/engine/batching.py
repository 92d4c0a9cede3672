"""How many rows fit into one forward pass. What a row takes is measured on a pass of one and of three."""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MEMORY = 2**26
"""Bytes that the tensors of one forward pass of stacked trials may take together, at their peak, on a CPU.

More rows at a time go slower there, since they fall out of its caches.
"""
ACCELERATOR_MEMORY = 2**30
"""The same on a GPU, which more rows keep busy."""


class _Watch(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, until they are freed."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                key = storage.data_ptr()
                if key and key not in given and key not in self.alive:
                    self.alive.add(key)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._free, key, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _free(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that tensors made by `run` hold at one time, on any device.

    Work space that an operation takes and gives back within itself is not seen.
    """
    with _Watch() as watch:
        run()
    return watch.peak


def budget_on(device: torch.device) -> int:
    """The bytes that one pass may take on that device."""
    return MEMORY if device.type == "cpu" else ACCELERATOR_MEMORY


def rows_at_once(run: Callable[[int], object], budget: int | None = None) -> int:
    """The largest number of rows with which `run(rows)` stays within `budget` bytes (`MEMORY`), at least one.

    The peak is taken to be affine in the rows, and measured at one and three.
    """
    one, three = (peak_bytes(lambda n=n: run(n)) for n in (1, 3))
    each = max(1, (three - one) // 2)
    return max(1, 1 + ((MEMORY if budget is None else budget) - one) // each)
