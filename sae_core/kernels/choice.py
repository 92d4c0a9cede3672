"""Whether a device has kernels."""

from functools import lru_cache
from importlib.util import find_spec
from typing import cast

import torch

from sae_core.kernels.interface import Kernels


@lru_cache
def kernels_for(device: torch.device) -> Kernels | None:
    """The kernels in Triton where the device is a GPU and Triton is there; None elsewhere."""
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    from sae_core.kernels import fused

    return cast(Kernels, fused)
