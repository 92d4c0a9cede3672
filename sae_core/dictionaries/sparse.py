"""Sparse latent activations: choose them, decode them, and pass gradients through them.

After the encoder a token has k active latents of n, so that everything else costs O(k d) instead of
O(n d) per token. Each product is one `embedding_bag`, forward and backward: decoding is a bag over the
rows of `W_dec`, a weight's gradient is a bag over the rows of the batch, with the codes transposed.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sae_core.dictionaries.codes import Codes, bounds_of
from sae_core.dictionaries.deferred import Deferred
from sae_core.kernels.choice import kernels_for
from sae_core.kernels.plain import group_keys, keys

_SHIFT = 3
_GROUP = 2**_SHIFT


class Scratch:
    """Memory for the latents of one batch, kept between steps: allocating it costs up to an eighth of a step.

    `dtype` is that of the encoder's matrix product, None for that of the activations. `most` numbers are held at once.
    """

    def __init__(self, dtype: torch.dtype | None = None, most: int = 2**30):
        self.dtype, self._most = dtype, most
        self._kept: Tensor | None = None

    def pieces(
        self,
        x: Float[Tensor, "batch d_in"],
        W_enc: Float[Tensor, "d_in n_latents"],
        b_enc: Float[Tensor, "n_latents"],
        b_dec: Float[Tensor, "d_in"],
    ) -> Iterator[Float[Tensor, "rows n_latents"]]:
        """`pre` of some rows after others: of a large batch no more than codes need be kept."""
        for rows in x.split(max(1, self._most // W_enc.shape[1])):
            yield self.pre(rows, W_enc, b_enc, b_dec)

    @torch.no_grad()
    def pre(
        self,
        x: Float[Tensor, "batch d_in"],
        W_enc: Float[Tensor, "d_in n_latents"],
        b_enc: Float[Tensor, "n_latents"],
        b_dec: Float[Tensor, "d_in"],
    ) -> Float[Tensor, "batch n_latents"]:
        """(x - b_dec) W_enc + b_enc without a graph; overwritten by the next call."""
        size, dtype = len(x) * W_enc.shape[1], self.dtype or x.dtype
        if self._kept is None or len(self._kept) < size or (self._kept.dtype, self._kept.device) != (dtype, x.device):
            self._kept = x.new_empty(size, dtype=dtype)
        out = self._kept[:size].view(len(x), -1)
        return torch.addmm(b_enc.to(dtype), (x - b_dec).to(dtype), W_enc.to(dtype), out=out)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has instructions for products of bfloat16; without them they are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    used = torch.backends.cpu.get_cpu_capability().startswith("AVX512")  # ATEN_CPU_CAPABILITY=avx2: as on older ones
    return device.type == "cpu" and used and any(getattr(torch.cpu, name, bool)() for name in names)


def top(pre: Float[Tensor, "batch n_latents"], k: int) -> tuple[Tensor, Tensor]:
    """Values and indices `[batch, k]` of the k largest entries of each row, on a CPU in no particular order.

    First of group maxima, then of the members of the k best groups: the k largest entries lie in
    at most k groups, and these have the largest maxima, so the result is exact and the sort is short.
    """
    if pre.device.type != "cpu":
        return ranked_top(pre, k)
    (batch, n), n_groups = pre.shape, pre.shape[1] // _GROUP
    if n % _GROUP or n_groups < 2 * k:
        return pre.topk(k, dim=-1, sorted=False)
    if pre.dtype is torch.float32:  # neighbours as groups: the fastest reads, where the maxima are vectorised
        best = F.max_pool1d(pre, _GROUP).topk(k, dim=-1, sorted=False).indices
        place = best + torch.arange(0, batch * n_groups, n_groups)[:, None]
        members = F.embedding(place, pre.view(-1, _GROUP)).view(batch, -1)  # indexing takes fifteen times as long
        values, member = members.topk(k, dim=-1, sorted=False)
        return values, (best * _GROUP).gather(-1, member >> _SHIFT) + (member & _GROUP - 1)  # division is slow
    wide = torch.float32 if pre.dtype.itemsize < 4 else pre.dtype  # halves sort slowly; doubles have near ties
    spread = pre.view(batch, _GROUP, n_groups)
    best = spread.amax(1).to(wide).topk(k, dim=-1, sorted=False).indices
    members = spread.gather(2, best[:, None].expand(-1, _GROUP, -1)).view(batch, -1)
    _, member = members.to(wide).topk(k, dim=-1, sorted=False)
    return members.gather(-1, member), best.gather(-1, member % k) + member // k * n_groups


def ranked_top(pre: Float[Tensor, "batch n_latents"], k: int, group: int = _GROUP) -> tuple[Tensor, Tensor]:
    """Values and indices `[batch, k]` of the k largest entries of each row, in order; of equals the lower index first.

    By `group` neighbours at a time, as `top`, so that the order of groups is that of their first largest members.
    """
    n_groups, rest = divmod(pre.shape[1], group)
    if rest or n_groups < 2 * k:
        indices = _ranked(keys(pre), k)
        return pre.gather(-1, indices), indices
    kernels = kernels_for(pre.device) if pre.dtype.itemsize == 2 and n_groups <= 2**16 else None
    best = _ranked((kernels.group_keys if kernels else group_keys)(pre, group), k).sort(-1).values
    members = pre.unflatten(-1, (-1, group)).gather(1, best[..., None].expand(-1, -1, group)).flatten(1)
    place = _ranked(keys(members), k)
    return members.gather(-1, place), best.gather(-1, place // group) * group + place % group


def _ranked(order: Tensor, k: int) -> Tensor:
    """The places of the k largest keys of each row, in order; equal ones, which only doubles are, in theirs."""
    if order.is_floating_point():
        return order.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return order.topk(k, dim=-1).indices


def batch_top(pre: Float[Tensor, "batch n_latents"], count: int) -> Codes:
    """The `count` largest entries of the whole batch, as far as they are positive.

    On a CPU a sample bounds them from below, so that only a few times `count` entries are ever sorted,
    and of equal entries at the end all are kept. On a GPU, which must not wait to learn how many are
    positive, the others are there as zeros.
    """
    flat = pre.reshape(-1)
    if pre.device.type != "cpu":
        place = flat.topk(min(count, len(flat)), sorted=False).indices.sort().values
        rows = bounds_of(place // pre.shape[1], len(pre))
        return Codes(place % pre.shape[1], flat[place].relu(), rows, pre.shape[1])
    sample = flat[:: max(1, len(flat) // 2**16)]
    rank = min(len(sample), 2 * count * len(sample) // len(flat) + 16)
    candidates = flat[flat > sample.topk(rank, sorted=False).values.min().clamp_min(0)]
    if len(candidates) < count:
        candidates = flat[flat > 0]
    if len(candidates) < count:
        return Codes.where(pre, pre > 0)
    return Codes.where(pre, pre >= candidates.topk(count, sorted=False).values.min())


def largest_of(codes: Codes, count: int) -> Codes:
    """What `batch_top` takes from a batch, of the codes that it takes from each part of it."""
    if (count := min(count, len(codes.values))) == 0:
        return codes
    largest = codes.values.topk(count, sorted=False)
    if codes.values.device.type != "cpu":
        return codes.at(largest.indices.sort().values)
    return codes.where_kept(codes.values >= largest.values.min())


def decode(
    codes: Codes, W_dec: Float[Tensor, "n_latents d_in"], deferred: Deferred | None = None
) -> Float[Tensor, "batch d_in"]:
    """f W_dec, without bias; gradients reach the values and the rows of `W_dec` that are active, or `deferred`."""
    if deferred:
        x_hat = _Decoded.apply(codes.values, codes, deferred)
    else:
        x_hat = F.embedding_bag(
            codes.indices,
            W_dec.detach(),
            codes.offsets,
            mode="sum",
            per_sample_weights=codes.values,
            include_last_offset=True,
        )
    return _DecoderGradient.apply(x_hat, W_dec, codes, deferred)


def encode(
    codes: Codes,
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in n_latents"],
    b_enc: Float[Tensor, "n_latents"],
    b_dec: Float[Tensor, "d_in"],
    deferred: Deferred | None = None,
) -> Codes:
    """`codes` with values that know where they come from: (x - b_dec) W_enc + b_enc at the chosen latents.

    The values must be those of the encoder already; this gives them their gradient, which reaches the
    chosen columns of `W_enc`, or `deferred`, `b_enc` and `b_dec`. `x` gets none.
    """
    _ = codes.by_latent  # sorted once here, read by the gradients of encoder and decoder
    return codes.with_values(_EncoderGradient.apply(codes.values, x, W_enc, b_enc, b_dec, codes, deferred))


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


class _Decoded(torch.autograd.Function):
    """f W_dec by the kernels of `deferred`, whose gradient reaches the values alone."""

    @staticmethod
    def forward(ctx, values, codes, deferred):
        ctx.codes, ctx.deferred = codes, deferred
        return deferred.kernels.decode(codes.indices, values, codes.offsets, deferred.W_dec)

    @staticmethod
    def backward(ctx, gradient):
        codes, deferred = ctx.codes, ctx.deferred
        return deferred.kernels.slopes(codes.indices, codes.offsets, gradient.contiguous(), deferred.W_dec), None, None


class _DecoderGradient(torch.autograd.Function):
    """x_hat unchanged; the gradient of `W_dec` is f^T dx_hat."""

    @staticmethod
    def forward(ctx, x_hat, W_dec, codes, deferred):
        ctx.codes, ctx.deferred = codes, deferred
        return x_hat.view_as(x_hat)

    @staticmethod
    def backward(ctx, gradient):
        gradient, d_W_dec = gradient.contiguous(), None
        if ctx.deferred:
            ctx.deferred.decoder = ctx.codes, gradient
        elif ctx.needs_input_grad[1]:
            d_W_dec = accumulate(ctx.codes, gradient)
        return gradient, d_W_dec, None, None


class _EncoderGradient(torch.autograd.Function):
    """Values unchanged; gradients of the encoder at the chosen latents."""

    @staticmethod
    def forward(ctx, values, x, W_enc, b_enc, b_dec, codes, deferred):
        ctx.codes, ctx.deferred = codes, deferred
        ctx.save_for_backward(x, W_enc, b_dec)
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient):
        (x, W_enc, b_dec), deferred = ctx.saved_tensors, ctx.deferred
        codes, d_W_enc = ctx.codes.with_values(gradient), None
        d_b_enc = _total(codes)
        if deferred:
            deferred.encoder, W_enc = (codes, x - b_dec), deferred.W_enc.T
        else:
            d_W_enc = accumulate(codes, x - b_dec).T
        d_b_dec = -(W_enc @ d_b_enc.to(W_enc.dtype)).to(d_b_enc.dtype)
        return None, None, d_W_enc, d_b_enc, d_b_dec, None, None


def _total(codes: Codes) -> Float[Tensor, "n_latents"]:
    """The sum of each latent's values, on every device in one order."""
    if codes.values.device.type == "cpu":
        return codes.values.new_zeros(codes.n_latents).index_add_(0, codes.indices, codes.values)
    order, _, offsets = codes.by_latent
    return torch.segment_reduce(codes.values[order], "sum", offsets=offsets, initial=0, unsafe=True)
