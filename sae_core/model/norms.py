"""Norms computed once.

At every norm the library computes the scale and the normalized residual beside the wrapped module's own output, for
hooks that read them; without such hooks both are thrown away.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor


def compute_once(bridge: Any) -> None:
    """From here on, norms of `bridge` compute what is read: the same output, and the rest where a hook asks for it.

    Bound methods in the instance dictionary: the library redirects plain attribute assignment to the wrapped module,
    and a copy of the bridge gets methods of its own norms.
    """
    for module in bridge.modules():
        if getattr(module, "use_native_layernorm_autograd", False) and module.original_component is not None:
            module.__dict__["forward"] = MethodType(_forward, module)


def _forward(norm: Any, x: Tensor, **options: Any) -> Tensor:
    points = (norm.hook_scale, norm.hook_normalized)
    if isinstance(norm.original_component, torch.nn.Identity) or any(p.fwd_hooks or p.bwd_hooks for p in points):
        return type(norm).forward(norm, x, **options)
    x = norm.hook_in(x)
    return norm.hook_out(norm.original_component(x).to(x.dtype))
