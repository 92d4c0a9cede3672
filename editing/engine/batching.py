"""How many rows fit into one forward pass: measured on passes of one and of three, not assumed."""

import weakref
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MEMORY = 2**26
"""Bytes that the tensors of one forward pass of stacked rows may take together, at their peak, on a CPU.

More rows at a time go slower there, since they fall out of its caches.
"""
ACCELERATOR_MEMORY = 2**30
"""The same on a GPU, which more rows keep busy."""


def budget_on(device: torch.device) -> int:
    """The bytes that one pass may take on that device."""
    return MEMORY if device.type == "cpu" else ACCELERATOR_MEMORY


@torch.no_grad()
def measure_rows_that_fit(run: Callable[[int], object], budget: int) -> int:
    """Runs `run(1)` and `run(3)`, and returns the largest n with which `run(n)` stays within `budget` bytes.

    At least one. The peak memory is taken to be affine in the rows, which it is as long as the rows are stacked in
    every tensor that grows: peak(n) = peak(1) + (n - 1) (peak(3) - peak(1)) / 2.
    """
    peak_of_one, peak_of_three = (peak_bytes(lambda n=n: run(n)) for n in (1, 3))
    per_row = max(1, (peak_of_three - peak_of_one) // 2)
    return max(1, 1 + (budget - peak_of_one) // per_row)


def peak_bytes(run: Callable[[], object]) -> int:
    """Runs `run()`, and returns the most bytes that tensors made by it hold at one time, on any device.

    Work space that an operation takes and gives back within itself is not seen.
    """
    with _AllocationCounter() as counter:
        run()
    return counter.peak


class _AllocationCounter(TorchDispatchMode):
    """Counts the bytes of the storages that operations allocate, until they are freed.

    What an operation returns in a storage of its inputs is a view.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {tensor.untyped_storage()._cdata for tensor in _tensors((*args, *(kwargs or {}).values()))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors((out,)):
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address not in inputs and address not in self.alive:
                self.alive.add(address)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, address, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _free(self, address: int, size: int) -> None:
        self.alive.discard(address)
        self.now -= size


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    """The tensors among the arguments or results of an operation, which are values or lists of values."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
