"""Kernels in Triton for what is bound by memory: each number is read once. See `interface.Kernels`, and `plain.py`.

Import this only where triton is. Every sum is taken in one order, by one program: twice the same, to the bit. A
latent that is active on thousands of tokens would keep one program busy while the others are done, so that its list
is cut where the whole list is, every `_TILE` entries: `_tile_sums` adds up the tiles that lie within one latent, and
`_step_rows` the rest and these.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
# (what @triton.jit makes is indexed by its grid; without Triton both look like mistakes)

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_core.kernels.interface import Adam, Matrix, Sums

_TILE = 128
_WIDEST = 1024
"""Numbers of a row that one program decodes."""


def decode(indices: Tensor, values: Tensor, offsets: Tensor, W: Tensor) -> Tensor:
    """See `interface.Kernels`."""
    d = W.shape[1]
    block = min(_WIDEST, triton.next_power_of_2(d))
    out = values.new_empty(len(offsets) - 1, d)
    with _on(W):
        _decode[(len(out), triton.cdiv(d, block))](indices, values, offsets, W, out, d, BLOCK=block)
    return out


def slopes(indices: Tensor, offsets: Tensor, g: Tensor, W: Tensor) -> Tensor:
    """See `interface.Kernels`."""
    d, out, n_rows = W.shape[1], g.new_empty(len(indices)), len(offsets) - 1
    with _on(W):
        _slopes[(n_rows,)](indices, offsets, g, W, out, d, BLOCK=triton.next_power_of_2(d), num_warps=_warps(d))
    return out


def step_rows(gradient: Sums, matrix: Matrix, adam: Adam, unit: bool) -> None:
    """See `interface.Kernels`."""
    (n, d), n_tiles, (b1, b2) = matrix.weight.shape, len(gradient.places) // _TILE, adam.betas
    sums = gradient.rows.new_empty(max(1, n_tiles), d)
    parts = (gradient.places, gradient.factors, gradient.rows, sums)
    whole, block = triton.next_power_of_2(d), min(_WIDEST, triton.next_power_of_2(d))
    with _on(sums):
        if n_tiles:
            _tile_sums[(n_tiles, triton.cdiv(d, block))](gradient.latents, *parts, d, TILE=_TILE, BLOCK=block)
        _step_rows[(n,)](
            gradient.bounds,
            *parts,
            *(gradient.slot, gradient.dead, matrix.weight, matrix.copy, matrix.mean, matrix.square),
            *(adam.rate / (1 - b1**adam.step), (1 - b2**adam.step) ** -0.5, b1, b2, adam.eps, d),
            UNIT=unit,
            TILE=_TILE,
            BLOCK=whole,
            num_warps=_warps(d),
        )


def group_keys(pre: Tensor, group: int) -> Tensor:
    """See `interface.Kernels`: int32, the bits of a value, in their order, above those of the group's number."""
    batch, n_groups = pre.shape[0], pre.shape[1] // group
    out = torch.empty(batch, n_groups, dtype=torch.int32, device=pre.device)
    with _on(pre):
        _group_keys[(batch, triton.cdiv(n_groups, 256))](pre.view(torch.int16), out, n_groups, GROUP=group, BLOCK=256)
    return out


def _on(x: Tensor) -> AbstractContextManager:
    """Triton starts kernels on the current device, wherever their tensors are."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _warps(d: int) -> int:
    return min(16, max(1, triton.next_power_of_2(d) // 512))


@triton.jit
def _decode(indices, values, offsets, W, out, d, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < d
    total = tl.zeros((BLOCK,), tl.float32)
    for e in range(tl.load(offsets + row), tl.load(offsets + row + 1)):
        w = tl.load(W + tl.load(indices + e) * d + column, mask=inside, other=0.0)
        total += tl.load(values + e) * w.to(tl.float32)
    tl.store(out + row * d + column, total, mask=inside)


@triton.jit
def _slopes(indices, offsets, g, W, out, d, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < d
    gradient = tl.load(g + row * d + column, mask=inside, other=0.0)
    for e in range(tl.load(offsets + row), tl.load(offsets + row + 1)):
        w = tl.load(W + tl.load(indices + e) * d + column, mask=inside, other=0.0)
        tl.store(out + e, tl.sum(gradient * w.to(tl.float32), 0))


@triton.jit
def _tile_sums(latents, places, factors, rows, sums, d, TILE: tl.constexpr, BLOCK: tl.constexpr):
    tile = tl.program_id(0).to(tl.int64)
    first = tile * TILE
    if tl.load(latents + first) == tl.load(latents + first + TILE - 1):
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < d
        total = tl.zeros((BLOCK,), tl.float32)
        for e in range(first, first + TILE):
            total += tl.load(factors + e) * tl.load(rows + tl.load(places + e) * d + column, mask=inside, other=0.0)
        tl.store(sums + tile * d + column, total, mask=inside)


@triton.jit
def _step_rows(
    bounds, places, factors, rows, sums, slot, dead, weight, copy, mean, square,
    rate, root_scale, b1, b2, eps, d, UNIT: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    latent = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < d
    g = tl.zeros((BLOCK,), tl.float32)
    low = tl.load(bounds + latent)
    high = tl.load(bounds + latent + 1)
    first = (low + TILE - 1) // TILE  # the tiles within the list: first to last, none where last <= first
    last = high // TILE
    for e in range(low, tl.minimum(first * TILE, high)):
        g += tl.load(factors + e) * tl.load(rows + tl.load(places + e) * d + column, mask=inside, other=0.0)
    for tile in range(first, last):
        g += tl.load(sums + tile * d + column, mask=inside, other=0.0)
    for e in range(tl.maximum(last, first) * TILE, high):
        g += tl.load(factors + e) * tl.load(rows + tl.load(places + e) * d + column, mask=inside, other=0.0)
    place = tl.load(slot + latent)
    if place >= 0:
        g += tl.load(dead + place * d + column, mask=inside, other=0.0).to(tl.float32)
    here = latent * d + column
    w = tl.load(weight + here, mask=inside, other=0.0)
    if UNIT:
        g -= tl.sum(g * w, 0) * w
    m = b1 * tl.load(mean + here, mask=inside, other=0.0) + (1 - b1) * g
    s = b2 * tl.load(square + here, mask=inside, other=0.0) + (1 - b2) * g * g
    w -= rate * m / (tl.sqrt(s) * root_scale + eps)
    if UNIT:
        w = w / tl.maximum(tl.sqrt(tl.sum(w * w, 0)), 1e-12)
    tl.store(mean + here, m, mask=inside)
    tl.store(square + here, s, mask=inside)
    tl.store(weight + here, w, mask=inside)
    tl.store(copy + here, w.to(copy.dtype.element_ty), mask=inside)


@triton.jit
def _group_keys(bits, out, n_groups, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = group < n_groups
    place = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    value = tl.load(bits + row * n_groups * GROUP + place, mask=inside[:, None], other=0).to(tl.int32)
    value = tl.where(value == -0x8000, 0, tl.where(value < 0, value ^ 0x7FFF, value))  # -0 is 0; negative ones rise
    tl.store(out + row * n_groups + group, (tl.max(value, 1) << 16) | (0xFFFF - group), mask=inside)
