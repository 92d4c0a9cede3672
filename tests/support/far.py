"""A second device without hardware: "far" tensors hold their numbers in this machine, and refuse what a GPU would.

An operation on tensors of two devices raises, but for those that CUDA takes: copies, a number of no dimension, indices
on the CPU. What a GPU would have to be waited for (`.item()`, `nonzero`, a mask as index, copies to and from the CPU)
is noted: `with far() as reads: ...`. Numbers are computed as on the CPU, and can be compared with its numbers.

Torch must know a device before the first backward pass, and then copies of the process (`os.fork`), by which other
tests work, can run none. So it is there only where `SUBRANK_FAR` is set: `test_far.py` runs the tests that need it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

try:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
except ImportError:  # experimental, and not in every torch
    _setup_privateuseone_for_python_backend = None

FAR = "far"
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
_READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "is_nonzero"}

CAN_BE = _setup_privateuseone_for_python_backend is not None
"""Whether torch can be given such a device."""
FAR_IS_HERE = "SUBRANK_FAR" in os.environ and CAN_BE
if FAR_IS_HERE and _setup_privateuseone_for_python_backend is not None:
    _setup_privateuseone_for_python_backend(FAR)


class FarTensor(Tensor):
    """A tensor on the far device; `near` holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor):
        layout = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        result = Tensor._make_wrapper_subclass(cls, near.size(), device=torch.device(FAR, 0), **layout)
        result.near = near
        return result

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {}, [])

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents=None):
        return f"far {self.near!r}"


class _Far(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {}, self.reads)


class Device:
    """A device by its name, and whether anything waits for it."""

    def __init__(self, name: str, reads: list[str]):
        self.name, self._reads = name, reads

    @contextmanager
    def unread(self) -> Iterator[None]:
        """Raises where anything in the block waits for a number."""
        if self.name == FAR:
            before = len(self._reads)
            yield
            if new := self._reads[before:]:
                raise RuntimeError(f"waits for {', '.join(new)}")
            return
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def far() -> Iterator[list[str]]:
    """Within, tensors can be made on the device "far" and moved there; yields the reads so far, by name."""
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device="far")` is made here and moved
    try:
        with _Far() as mode:
            yield mode.reads
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def _computed(func: Any, args: Any, kwargs: dict[str, Any], reads: list[str]) -> Any:
    name, tensors = (
        func.overloadpacket.__name__,
        [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)],
    )
    n_far, target = sum(isinstance(each, FarTensor) for each in tensors), kwargs.get("device")
    if name == "copy_":
        to_far = isinstance(args[0], FarTensor)
    else:
        to_far = torch.device(target).type == FAR if target is not None else n_far > 0
    if not n_far and not to_far:
        return func(*args, **kwargs)
    is_copy = name in ("_to_copy", "copy_")
    here = [each for each in tensors if not isinstance(each, FarTensor) and (each.ndim or is_copy)]
    if here and not is_copy and name not in _INDEXED:
        raise RuntimeError(f"{name}: tensors on two devices, {[str(each.device) for each in tensors]}")
    has_mask = name in _INDEXED and any(
        isinstance(each, FarTensor) and each.dtype is torch.bool for each in tree_leaves(args[1])
    )
    unsized = name == "repeat_interleave" and kwargs.get("output_size") is None
    if name in _READS or here or (n_far and not to_far) or has_mask or unsized:
        reads.append(name)
    near_args, near_kwargs = tree_map(lambda each: each.near if isinstance(each, FarTensor) else each, (args, kwargs))
    result = func(*near_args, **near_kwargs | ({} if target is None else {"device": torch.device("cpu")}))
    if not to_far:
        return args[0] if name == "copy_" else result
    result = tree_map(lambda each: FarTensor(each) if isinstance(each, Tensor) else each, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if n_far else result
