"""Sparse latent activations: choose them, decode them, and pass gradients through them.

After the encoder a token has k active latents of n, so that everything else costs O(k d) instead of
O(n d) per token. Each product is one `embedding_bag`, forward and backward: decoding is a bag over the
rows of `W_dec`, a weight's gradient is a bag over the rows of the batch, with the codes transposed.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_GROUP = 8


@dataclass(frozen=True, eq=False)
class Codes:
    """The active latents of a batch of tokens, row by row.

    Token b has the latents `indices[offsets[b]:offsets[b + 1]]` with activations `values[...]`.
    """

    indices: Int[Tensor, "active"]
    values: Float[Tensor, "active"]
    offsets: Int[Tensor, "batch_and_1"]
    n_latents: int

    @classmethod
    def of_rows(cls, indices: Int[Tensor, "batch k"], values: Float[Tensor, "batch k"], n_latents: int) -> "Codes":
        """Codes with equally many entries in each row."""
        batch, k = indices.shape
        offsets = k * torch.arange(batch + 1, device=indices.device)
        return cls(indices.reshape(-1), values.reshape(-1), offsets, n_latents)

    @classmethod
    def where(cls, f: Float[Tensor, "batch n_latents"], mask: Tensor | None = None) -> "Codes":
        """The codes of dense activations: entries where `mask` holds, or where they are not zero."""
        rows, indices = (f != 0 if mask is None else mask).nonzero(as_tuple=True)
        codes = cls(indices, f[rows, indices], _bounds(rows, len(f)), f.shape[-1])
        codes.__dict__["rows"] = rows
        return codes

    @cached_property
    def rows(self) -> Int[Tensor, "active"]:
        """The token of each entry."""
        counts = self.offsets.diff()
        token = torch.arange(len(counts), device=counts.device)
        return token.repeat_interleave(counts, output_size=len(self.indices))

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same entries latent by latent: (their order, their tokens, offsets `[n_latents + 1]`)."""
        indices, order = torch.sort(self.indices.int(), stable=True)  # half as wide, sorted twice as fast
        return order, self.rows[order], _bounds(indices, self.n_latents)

    def with_values(self, values: Float[Tensor, "active"]) -> "Codes":
        """The same latents with other activations."""
        other = Codes(self.indices, values, self.offsets, self.n_latents)
        shared = {name: self.__dict__[name] for name in ("rows", "by_latent") if name in self.__dict__}
        other.__dict__.update(shared)
        return other

    def between(self, low: int, high: int) -> "Codes":
        """The entries whose latent is in [low, high)."""
        return self.where_kept((self.indices >= low) & (self.indices < high))

    def where_kept(self, kept: Bool[Tensor, "active"]) -> "Codes":
        """The entries that are kept; the others are left out on a CPU and zeros elsewhere, so that no device waits for
        their number."""
        if kept.device.type != "cpu":
            return self.with_values(self.values * kept)
        place = kept.nonzero().squeeze(-1)
        rows = self.rows[place]
        codes = Codes(self.indices[place], self.values[place], _bounds(rows, len(self.offsets) - 1), self.n_latents)
        codes.__dict__["rows"] = rows
        return codes

    def dense(self) -> Float[Tensor, "batch n_latents"]:
        """All activations, zeros included."""
        f = self.values.new_zeros(len(self.offsets) - 1, self.n_latents)
        return f.index_put((self.rows, self.indices), self.values, accumulate=True)


class Scratch:
    """Memory for the latents of one batch, kept between steps: allocating it costs up to an eighth of a step.

    `dtype` is that of the encoder's matrix product, None for that of the activations.
    """

    def __init__(self, dtype: torch.dtype | None = None):
        self._dtype = dtype
        self._kept: Tensor | None = None

    @torch.no_grad()
    def pre(
        self,
        x: Float[Tensor, "batch d_in"],
        W_enc: Float[Tensor, "d_in n_latents"],
        b_enc: Float[Tensor, "n_latents"],
        b_dec: Float[Tensor, "d_in"],
    ) -> Float[Tensor, "batch n_latents"]:
        """(x - b_dec) W_enc + b_enc without a graph; overwritten by the next call."""
        size, dtype = len(x) * W_enc.shape[1], self._dtype or x.dtype
        if self._kept is None or len(self._kept) < size or (self._kept.dtype, self._kept.device) != (dtype, x.device):
            self._kept = x.new_empty(size, dtype=dtype)
        out = self._kept[:size].view(len(x), -1)
        return torch.addmm(b_enc.to(dtype), (x - b_dec).to(dtype), W_enc.to(dtype), out=out)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has instructions for products of bfloat16; without them they are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)


def top(pre: Float[Tensor, "batch n_latents"], k: int) -> tuple[Tensor, Tensor]:
    """Values and indices `[batch, k]` of the k largest entries of each row, in no particular order.

    On a CPU first of group maxima, then of the members of the k best groups: the k largest entries lie in
    at most k groups, and these have the largest maxima, so the result is exact and the sort is short.
    """
    (batch, n), n_groups = pre.shape, pre.shape[1] // _GROUP
    if pre.device.type != "cpu" or n % _GROUP or n_groups < 2 * k:
        return pre.topk(k, dim=-1, sorted=False)
    if pre.dtype is torch.float32:  # neighbours as groups: the fastest reads, where the maxima are vectorised
        best = F.max_pool1d(pre, _GROUP).topk(k, dim=-1, sorted=False).indices
        place = best + torch.arange(0, batch * n_groups, n_groups)[:, None]
        values, member = pre.view(-1, _GROUP)[place.view(-1)].view(batch, -1).topk(k, dim=-1, sorted=False)
        return values, best.gather(-1, member // _GROUP) * _GROUP + member % _GROUP
    wide = torch.float32 if pre.dtype.itemsize < 4 else pre.dtype  # halves sort slowly; doubles have near ties
    spread = pre.view(batch, _GROUP, n_groups)
    best = spread.amax(1).to(wide).topk(k, dim=-1, sorted=False).indices
    members = spread.gather(2, best[:, None].expand(-1, _GROUP, -1)).view(batch, -1)
    _, member = members.to(wide).topk(k, dim=-1, sorted=False)
    return members.gather(-1, member), best.gather(-1, member % k) + member // k * n_groups


def batch_top(pre: Float[Tensor, "batch n_latents"], count: int) -> Codes:
    """The `count` largest entries of the whole batch, as far as they are positive.

    On a CPU a sample bounds them from below, so that only a few times `count` entries are ever sorted,
    and of equal entries at the end all are kept. On a GPU, which must not wait to learn how many are
    positive, the others are there as zeros.
    """
    flat = pre.reshape(-1)
    if pre.device.type != "cpu":
        place = flat.topk(min(count, len(flat)), sorted=False).indices.sort().values
        rows = _bounds(place // pre.shape[1], len(pre))
        return Codes(place % pre.shape[1], flat[place].relu(), rows, pre.shape[1])
    sample = flat[:: max(1, len(flat) // 2**16)]
    rank = min(len(sample), 2 * count * len(sample) // len(flat) + 16)
    candidates = flat[flat > sample.topk(rank, sorted=False).values.min().clamp_min(0)]
    if len(candidates) < count:
        candidates = flat[flat > 0]
    if len(candidates) < count:
        return Codes.where(pre, pre > 0)
    return Codes.where(pre, pre >= candidates.topk(count, sorted=False).values.min())


def decode(codes: Codes, W_dec: Float[Tensor, "n_latents d_in"]) -> Float[Tensor, "batch d_in"]:
    """f W_dec, without bias; gradients reach the values and the rows of `W_dec` that are active."""
    x_hat = F.embedding_bag(
        codes.indices,
        W_dec.detach(),
        codes.offsets,
        mode="sum",
        per_sample_weights=codes.values,
        include_last_offset=True,
    )
    return _DecoderGradient.apply(x_hat, W_dec, codes)


def encode(
    codes: Codes,
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in n_latents"],
    b_enc: Float[Tensor, "n_latents"],
    b_dec: Float[Tensor, "d_in"],
) -> Codes:
    """`codes` with values that know where they come from: (x - b_dec) W_enc + b_enc at the chosen latents.

    The values must be those of the encoder already; this gives them their gradient, which reaches the
    chosen columns of `W_enc`, `b_enc` and `b_dec`. `x` gets none.
    """
    _ = codes.by_latent  # sorted once here, read by the gradients of encoder and decoder
    return codes.with_values(_EncoderGradient.apply(codes.values, x, W_enc, b_enc, b_dec, codes))


def accumulate(codes: Codes, rows: Float[Tensor, "batch d"]) -> Float[Tensor, "n_latents d"]:
    """f^T rows: for each latent the sum of the tokens' rows, weighted by its activations there."""
    order, tokens, offsets = codes.by_latent
    return F.embedding_bag(
        tokens,
        rows,
        offsets,
        mode="sum",
        per_sample_weights=codes.values.detach()[order],
        include_last_offset=True,
    )


def _bounds(ordered: Int[Tensor, "active"], n: int) -> Int[Tensor, "n_and_1"]:
    """Where each of the values 0 ... n begins in an ordered list."""
    return torch.searchsorted(ordered, torch.arange(n + 1, device=ordered.device))


class _DecoderGradient(torch.autograd.Function):
    """x_hat unchanged; the gradient of `W_dec` is f^T dx_hat."""

    @staticmethod
    def forward(ctx, x_hat, W_dec, codes):
        ctx.codes = codes
        return x_hat.view_as(x_hat)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        return gradient, accumulate(ctx.codes, gradient) if ctx.needs_input_grad[1] else None, None


class _EncoderGradient(torch.autograd.Function):
    """Values unchanged; gradients of the encoder at the chosen latents."""

    @staticmethod
    def forward(ctx, values, x, W_enc, b_enc, b_dec, codes):
        ctx.codes = codes
        ctx.save_for_backward(x, W_enc, b_dec)
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient):
        x, W_enc, b_dec = ctx.saved_tensors
        d_b_enc = gradient.new_zeros(ctx.codes.n_latents).index_add_(0, ctx.codes.indices, gradient)
        d_W_enc = accumulate(ctx.codes.with_values(gradient), x - b_dec).T
        return None, None, d_W_enc, d_b_enc, -(W_enc @ d_b_enc), None
