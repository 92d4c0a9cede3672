"""Kernels in Triton for what is bound by memory: each number is read once. See `interface.Kernels`, and `plain.py`.

Import this only where triton is. Every sum is taken in one order, by one program: twice the same, to the bit. A
latent that is active on thousands of tokens would keep one program busy while the others are done, so that its list
is cut where the whole list is, every `_TILE` entries: `_tile_sums` adds up the tiles that lie within one latent, and
`_latents` the rest and these.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
# (what @triton.jit makes is indexed by its grid; without Triton both look like mistakes)

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae_core.kernels.interface import Adam, Entries, Matrix

_TILE = 128
_WIDEST = 1024
"""Numbers of a row that one program decodes."""


def decode(indices: Tensor, values: Tensor, offsets: Tensor, W: Tensor) -> Tensor:
    """See `interface.Kernels`."""
    d = W.shape[1]
    block = min(_WIDEST, triton.next_power_of_2(d))
    out = values.new_empty(len(offsets) - 1, d)
    _decode[(len(out), triton.cdiv(d, block))](indices, values, offsets, W, out, d, BLOCK=block)
    return out


def slopes(indices: Tensor, offsets: Tensor, g: Tensor, W: Tensor) -> Tensor:
    """See `interface.Kernels`."""
    d, out = W.shape[1], g.new_empty(len(indices))
    _slopes[(len(offsets) - 1,)](indices, offsets, g, W, out, d, BLOCK=triton.next_power_of_2(d), num_warps=_warps(d))
    return out


def step_latents(entries: Entries, encoder: Matrix, decoder: Matrix, adam: Adam) -> None:
    """See `interface.Kernels`."""
    (n, d), n_entries = decoder.weight.shape, len(entries.values)
    n_tiles, block = n_entries // _TILE, min(_WIDEST, triton.next_power_of_2(d))
    sums = entries.g.new_empty(2, max(1, n_tiles), d)
    of_entries = (entries.tokens, entries.rows, entries.values, entries.slopes, entries.x, entries.g, sums[0], sums[1])
    if n_tiles:
        _tile_sums[(n_tiles, triton.cdiv(d, block))](entries.latents, *of_entries, d, TILE=_TILE, BLOCK=block)
    _latents[(n,)](
        entries.bounds,
        *of_entries,
        *(entries.slot, entries.dead_enc, entries.dead_dec),
        *(encoder.weight, encoder.copy, encoder.mean, encoder.square),
        *(decoder.weight, decoder.copy, decoder.mean, decoder.square),
        *(adam.rate / (1 - adam.betas[0] ** adam.step), (1 - adam.betas[1] ** adam.step) ** -0.5),
        *(*adam.betas, adam.eps, d),
        TILE=_TILE,
        BLOCK=triton.next_power_of_2(d),
        num_warps=_warps(d),
    )


def group_keys(pre: Tensor, group: int) -> Tensor:
    """See `interface.Kernels`: int32, the bits of a value, in their order, above those of the group's number."""
    batch, n_groups = pre.shape[0], pre.shape[1] // group
    out = torch.empty(batch, n_groups, dtype=torch.int32, device=pre.device)
    _group_keys[(batch, triton.cdiv(n_groups, 256))](pre.view(torch.int16), out, n_groups, GROUP=group, BLOCK=256)
    return out


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
def _tile_sums(
    latents, tokens, rows, values, slopes, x, g, sums_enc, sums_dec, d, TILE: tl.constexpr, BLOCK: tl.constexpr
):
    tile = tl.program_id(0).to(tl.int64)
    first = tile * TILE
    if tl.load(latents + first) == tl.load(latents + first + TILE - 1):
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < d
        enc = tl.zeros((BLOCK,), tl.float32)
        dec = tl.zeros((BLOCK,), tl.float32)
        for e in range(first, first + TILE):
            enc += tl.load(slopes + e) * tl.load(x + tl.load(tokens + e) * d + column, mask=inside, other=0.0)
            dec += tl.load(values + e) * tl.load(g + tl.load(rows + e) * d + column, mask=inside, other=0.0)
        tl.store(sums_enc + tile * d + column, enc, mask=inside)
        tl.store(sums_dec + tile * d + column, dec, mask=inside)


@triton.jit
def _adam(weight, copy, mean, square, place, inside, gradient, rate, root_scale, b1, b2, eps, UNIT: tl.constexpr):
    m = b1 * tl.load(mean + place, mask=inside, other=0.0) + (1 - b1) * gradient
    s = b2 * tl.load(square + place, mask=inside, other=0.0) + (1 - b2) * gradient * gradient
    w = tl.load(weight + place, mask=inside, other=0.0) - rate * m / (tl.sqrt(s) * root_scale + eps)
    if UNIT:
        w = w / tl.maximum(tl.sqrt(tl.sum(w * w, 0)), 1e-12)
    tl.store(mean + place, m, mask=inside)
    tl.store(square + place, s, mask=inside)
    tl.store(weight + place, w, mask=inside)
    tl.store(copy + place, w.to(copy.dtype.element_ty), mask=inside)


@triton.jit
def _latents(
    bounds, tokens, rows, values, slopes, x, g, sums_enc, sums_dec, slot, dead_enc, dead_dec,
    enc_weight, enc_copy, enc_mean, enc_square, dec_weight, dec_copy, dec_mean, dec_square,
    rate, root_scale, b1, b2, eps, d, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    latent = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < d
    enc = tl.zeros((BLOCK,), tl.float32)
    dec = tl.zeros((BLOCK,), tl.float32)
    low = tl.load(bounds + latent)
    high = tl.load(bounds + latent + 1)
    first = (low + TILE - 1) // TILE  # the tiles within the list: first to last, none where last <= first
    last = high // TILE
    for e in range(low, tl.minimum(first * TILE, high)):
        enc += tl.load(slopes + e) * tl.load(x + tl.load(tokens + e) * d + column, mask=inside, other=0.0)
        dec += tl.load(values + e) * tl.load(g + tl.load(rows + e) * d + column, mask=inside, other=0.0)
    for tile in range(first, last):
        enc += tl.load(sums_enc + tile * d + column, mask=inside, other=0.0)
        dec += tl.load(sums_dec + tile * d + column, mask=inside, other=0.0)
    for e in range(tl.maximum(last, first) * TILE, high):
        enc += tl.load(slopes + e) * tl.load(x + tl.load(tokens + e) * d + column, mask=inside, other=0.0)
        dec += tl.load(values + e) * tl.load(g + tl.load(rows + e) * d + column, mask=inside, other=0.0)
    dead = tl.load(slot + latent)
    if dead >= 0:
        enc += tl.load(dead_enc + dead * d + column, mask=inside, other=0.0).to(tl.float32)
        dec += tl.load(dead_dec + dead * d + column, mask=inside, other=0.0).to(tl.float32)
    place = latent * d + column
    direction = tl.load(dec_weight + place, mask=inside, other=0.0)
    dec -= tl.sum(dec * direction, 0) * direction
    _adam(enc_weight, enc_copy, enc_mean, enc_square, place, inside, enc, rate, root_scale, b1, b2, eps, UNIT=False)
    _adam(dec_weight, dec_copy, dec_mean, dec_square, place, inside, dec, rate, root_scale, b1, b2, eps, UNIT=True)


@triton.jit
def _group_keys(bits, out, n_groups, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = group < n_groups
    place = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    value = tl.load(bits + row * n_groups * GROUP + place, mask=inside[:, None], other=0).to(tl.int32)
    value = tl.where(value == -0x8000, 0, tl.where(value < 0, value ^ 0x7FFF, value))  # -0 is 0; negative ones rise
    tl.store(out + row * n_groups + group, (tl.max(value, 1) << 16) | (0xFFFF - group), mask=inside)
