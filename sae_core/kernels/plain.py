"""What the kernels of `fused.py` compute, in plain PyTorch: their reference, and not fast. See `interface.Kernels`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_core.kernels.interface import Adam, Matrix, Sums


def decode(indices: Tensor, values: Tensor, offsets: Tensor, W: Tensor) -> Tensor:
    """See `interface.Kernels`."""
    bags = {"mode": "sum", "per_sample_weights": values, "include_last_offset": True}
    return F.embedding_bag(indices, W.to(values.dtype), offsets, **bags)


def slopes(indices: Tensor, offsets: Tensor, g: Tensor, W: Tensor) -> Tensor:
    """See `interface.Kernels`."""
    rows = torch.arange(len(g), device=g.device).repeat_interleave(offsets.diff(), output_size=len(indices))
    return (g[rows] * W[indices].to(g.dtype)).sum(-1)


def step_rows(gradient: Sums, matrix: Matrix, adam: Adam, unit: bool) -> None:
    """See `interface.Kernels`."""
    weight, (b1, b2) = matrix.weight, adam.betas
    g = decode(gradient.places, gradient.factors, gradient.bounds, gradient.rows)
    if len(gradient.dead):
        g += torch.where(gradient.slot[:, None] < 0, 0, gradient.dead[gradient.slot.clamp_min(0)].to(g.dtype))
    if unit:
        g -= (g * weight).sum(-1, keepdim=True) * weight
    matrix.mean.mul_(b1).add_(g, alpha=1 - b1)
    matrix.square.mul_(b2).addcmul_(g, g, value=1 - b2)
    root = (matrix.square / (1 - b2**adam.step)).sqrt() + adam.eps
    weight.addcdiv_(matrix.mean, root, value=-adam.rate / (1 - b1**adam.step))
    if unit:
        weight /= weight.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    matrix.copy.copy_(weight)


def group_keys(pre: Tensor, group: int) -> Tensor:
    """See `interface.Kernels`."""
    return keys(pre.unflatten(-1, (-1, group)).amax(-1))


def keys(values: Tensor) -> Tensor:
    """Integers in the order of the values of a row, of equal values the first largest; doubles stay as they are."""
    if values.dtype.itemsize == 8:
        return values
    short = values.dtype.itemsize == 2
    bits = (values + 0.0).view(torch.int16 if short else torch.int32)  # 0 for -0
    ordered = torch.where(bits < 0, bits ^ (2**15 - 1 if short else 2**31 - 1), bits)
    wide, low = (torch.int32, 16) if short and values.shape[-1] <= 2**16 else (torch.int64, 31)
    place = torch.arange(values.shape[-1], device=values.device, dtype=wide)
    return (ordered.to(wide) << low) | (2**low - 1 - place)
