"""Recipes with a penalty for latents that are active: ReLU and Gated (L1), JumpReLU (L0). Units: see `recipe.py`.

A latent that is zero has, but for thresholds, no gradient. So a step needs the encoder's product, and all else at
active entries alone, as in TopK (`_Chosen`); early in training, where many are active, the formulas run over all.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_core import checks
from sae_core.dictionaries import sparse
from sae_core.dictionaries.saes import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TiedSAE
from sae_core.dictionaries.sparse import Codes
from sae_core.sharding.ranks import Ranks
from sae_core.training.recipe import (
    LossContext,
    Outcome,
    batch_fvu,
    check_k,
    sparse_outcome,
    squared_error,
)

FEW = 1 / 5
"""Share of entries up to which products with these alone are faster than with all."""


def l1_of_mean(alpha: float, d_in: int) -> float:
    """The coefficient here for one that weighs a mean over dimensions: mean (x - x_hat)^2 + alpha * sum_j f_j.

    Multiplying that by d_in gives |x - x_hat|^2 + alpha d_in * sum_j f_j. Cunningham et al. 2023 state
    alpha (8.6e-4 at d = 512: 0.44 here); Bricken et al. 2023 and SAELens sum. Both sides in the same units
    of x: for activations scaled by s the equivalent coefficient is s times that of the unscaled ones.
    """
    return alpha * d_in


@dataclass(frozen=True)
class ReLU:
    """ReLU with an L1 penalty, untied (Bricken et al. 2023) or tied (Cunningham et al. 2023, section 2).

    loss = mean over the batch of (|x - x_hat|^2 + l1 * sum_j f_j) / d_in.
    """

    l1: float = 2.0
    tied: bool = False

    def __post_init__(self):
        checks.weight("the L1 coefficient", self.l1)

    def new(self, d_in: int, n_latents: int, *, generator: torch.Generator) -> ReLUSAE:
        return (TiedSAE if self.tied else ReLUSAE)(d_in, n_latents, generator=generator)

    def loss(self, sae: ReLUSAE, x: Float[Tensor, "batch d_in"], context: LossContext) -> Outcome:
        pre = context.scratch.pre(x, sae.W_enc, sae.b_enc, sae.b_dec)
        chosen = _Chosen.of(sae, x, pre, _few(pre, pre > 0))
        ranks, f = context.ranks, chosen.pre.relu()
        x_hat = ranks.summed(chosen.decode(f, sae.W_dec)) + sae.b_dec
        penalty = context.ramp * self.l1 * ranks.mean(f.sum() / x.numel())
        return chosen.outcome(squared_error(ranks.answered(x), x_hat, ranks) + penalty, x, x_hat, f, ranks)


@dataclass(frozen=True)
class JumpReLU:
    """A learned threshold per latent, and a penalty on L0 itself (Rajamanoharan et al. 2024b, sections 3 and 5).

    loss = FVU + l0 * (L0 / k - 1)^2, the second term by a rectangular kernel of width `bandwidth` around
    the threshold, through which alone thresholds learn of L0.
    """

    k: int = 16
    l0: float = 0.1
    bandwidth: float = 1.0

    def __post_init__(self):
        checks.whole("k", self.k, 1)
        checks.weight("the weight of L0", self.l0)
        checks.positive("the bandwidth", self.bandwidth)

    def new(self, d_in: int, n_latents: int, *, generator: torch.Generator) -> JumpReLUSAE:
        check_k(self.k, n_latents)
        sae = JumpReLUSAE(d_in, n_latents, generator=generator)
        # unit directions against activations of unit variance: about 4k latents lie above this at the start
        tail = min(0.5, 4 * self.k / n_latents)
        sae.threshold.data.fill_(-torch.special.ndtri(torch.tensor(tail)).item())
        return sae

    def loss(self, sae: JumpReLUSAE, x: Float[Tensor, "batch d_in"], context: LossContext) -> Outcome:
        ranks, threshold = context.ranks, sae.threshold.clamp_min(0)
        pre = context.scratch.pre(x, sae.W_enc, sae.b_enc, sae.b_dec)
        within = _few(pre, pre >= threshold - self.bandwidth / 2)  # active, or near enough to teach the threshold
        if within is None:
            chosen = _Chosen.of(sae, x, pre, None)
            f, on = _JumpReLU.apply(chosen.pre, threshold, self.bandwidth)
            part, l0 = chosen.decode(f, sae.W_dec), on.sum() / len(x)
        else:
            limit = threshold.detach()[within.indices]
            near = within.where_kept(_near(within.values, limit, self.bandwidth))
            chosen = _Chosen.of(sae, x, pre, within.where_kept(within.values > limit))
            f, part = chosen.pre, chosen.decode(chosen.pre, sae.W_dec)
            part, l0 = _Thresholds.apply(part, threshold, sae.W_dec, near, len(f), self.bandwidth)
        x_hat = ranks.summed(part) + sae.b_dec
        penalty = context.ramp * self.l0 * (ranks.mean(l0) / self.k - 1).square()
        return chosen.outcome(batch_fvu(ranks.answered(x), x_hat, ranks) + penalty, x, x_hat, f, ranks)


@dataclass(frozen=True)
class Gated:
    """Gates learn from an L1 penalty and an auxiliary reconstruction (Rajamanoharan et al. 2024a, section 3.2).

    loss = mean over the batch of (|x - x_hat|^2 + l1 * sum_j relu(gate_j) + |x - x_hat_aux|^2) / d_in,
    where x_hat_aux decodes relu(gate) with the decoder held fixed.
    """

    l1: float = 2.0

    def __post_init__(self):
        checks.weight("the L1 coefficient", self.l1)

    def new(self, d_in: int, n_latents: int, *, generator: torch.Generator) -> GatedSAE:
        return GatedSAE(d_in, n_latents, generator=generator)

    def loss(self, sae: GatedSAE, x: Float[Tensor, "batch d_in"], context: LossContext) -> Outcome:
        pre = context.scratch.pre(x, sae.W_enc, sae.b_enc, sae.b_dec)
        chosen = _Chosen.of(sae, x, pre, _few(pre, pre > -sae.b_gate))
        gate = (chosen.pre + chosen.at(sae.b_gate)).relu()
        f = (gate > 0) * (chosen.at(sae.r_mag).exp() * chosen.pre + chosen.at(sae.b_mag)).relu()
        ranks, answered = context.ranks, context.ranks.answered(x)
        x_hat = ranks.summed(chosen.decode(f, sae.W_dec)) + sae.b_dec
        x_hat_aux = ranks.summed(chosen.decode(gate, sae.W_dec.detach())) + sae.b_dec.detach()
        loss = squared_error(answered, x_hat, ranks) + squared_error(answered, x_hat_aux, ranks)
        loss = loss + context.ramp * self.l1 * ranks.mean(gate.sum() / x.numel())
        return chosen.outcome(loss, x, x_hat, f, ranks)


def _few(pre: Float[Tensor, "batch n_latents"], mask: Bool[Tensor, "batch n_latents"]) -> Codes | None:
    """The entries where `mask` holds; None if these are many, and on a GPU, which would wait for their number."""
    many = pre.device.type != "cpu" or mask.count_nonzero() > FEW * mask.numel()
    return None if many else Codes.where(pre, mask)


@dataclass(frozen=True, eq=False)
class _Chosen:
    """The encoder's product with its gradient: at few entries (those of `codes`), or at all (None)."""

    pre: Tensor
    """`[active]` or `[batch, n_latents]`."""
    codes: Codes | None

    @classmethod
    def of(cls, sae: SAE, x: Tensor, pre: Float[Tensor, "batch n_latents"], codes: Codes | None) -> "_Chosen":
        """`pre` at the entries of `codes`, or all of it."""
        parameters = sae.W_enc, sae.b_enc, sae.b_dec
        if codes is None:
            return cls(_EncoderGradient.apply(pre.to(x.dtype), x, *parameters), None)
        codes = sparse.encode(codes.with_values(codes.values.to(x.dtype)), x, *parameters)
        return cls(codes.values, codes)

    def at(self, parameter: Float[Tensor, "n_latents"]) -> Tensor:
        """A parameter of each latent, so that it fits `pre`."""
        return parameter if self.codes is None else parameter.index_select(0, self.codes.indices)

    def decode(self, f: Tensor, W_dec: Float[Tensor, "n_latents d_in"]) -> Float[Tensor, "batch d_in"]:
        """f W_dec, without bias."""
        return f @ W_dec if self.codes is None else sparse.decode(self.codes.with_values(f), W_dec)

    def outcome(self, loss: Tensor, x: Tensor, x_hat: Tensor, f: Tensor, ranks: Ranks) -> Outcome:
        fvu = batch_fvu(ranks.answered(x), x_hat.detach(), ranks)
        if self.codes is not None:
            return sparse_outcome(loss, x_hat, fvu, self.codes.with_values(f), ranks=ranks)
        active = f.detach() != 0
        l0 = active.count_nonzero().to(x.dtype) / len(x)  # a sum takes fifteen times as long
        return Outcome(loss, x_hat, fvu, active.any(0), ranks.mean(l0))


class _EncoderGradient(torch.autograd.Function):
    """(x - b_dec) W_enc + b_enc unchanged, and its gradient. `x` gets none, which saves a product of five."""

    @staticmethod
    def forward(ctx, pre, x, W_enc, b_enc, b_dec):
        ctx.save_for_backward(x, W_enc, b_dec)
        return pre.view_as(pre)

    @staticmethod
    def backward(ctx, gradient):
        x, W_enc, b_dec = ctx.saved_tensors
        d_b_enc = gradient.sum(0)
        return None, None, (gradient.T @ (x - b_dec)).T, d_b_enc, -(W_enc @ d_b_enc)


def _near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Bool[Tensor, "..."]:
    """Where the kernel around the threshold is not zero."""
    return (pre >= threshold - bandwidth / 2) & (pre <= threshold + bandwidth / 2)


class _JumpReLU(torch.autograd.Function):
    """(pre * on, on) with on = [pre > threshold], and the threshold's gradients by a rectangular kernel.

    With K = [|pre - threshold| <= bandwidth / 2]: d(pre * on)/d threshold = -threshold / bandwidth * K,
    d on / d threshold = -K / bandwidth (Rajamanoharan et al. 2024b, equations 11 and 12).
    """

    @staticmethod
    def forward(ctx, pre, threshold, bandwidth):
        on = pre > threshold
        ctx.save_for_backward(pre, threshold, on)
        ctx.bandwidth = bandwidth
        return pre * on, on.to(pre.dtype)

    @staticmethod
    def backward(ctx, d_f, d_on):
        pre, threshold, on = ctx.saved_tensors
        near = _near(pre, threshold, ctx.bandwidth)
        d_threshold = -((threshold * d_f + d_on) * near).sum(0) / ctx.bandwidth
        return d_f * on, d_threshold, None


class _Thresholds(torch.autograd.Function):
    """(f W_dec, L0) unchanged, and the gradients of thresholds that `_JumpReLU` gives, from near entries alone.

    With g = d loss / d (f W_dec), a latent's activation on token b has the gradient <g_b, d_j>. So the sum over
    its near tokens is <(K^T g)_j, d_j>, and

        d_threshold_j = -(threshold_j <(K^T g)_j, d_j> + d_L0 / batch * sum_b K_bj) / bandwidth.
    """

    @staticmethod
    def forward(ctx, part, threshold, W_dec, near, n_active, bandwidth):
        ctx.save_for_backward(threshold, W_dec)
        ctx.near, ctx.bandwidth = near, bandwidth
        return part.view_as(part), part.new_tensor(n_active / len(part))

    @staticmethod
    def backward(ctx, g, d_l0):
        threshold, W_dec = ctx.saved_tensors
        summed = sparse.accumulate(ctx.near.with_values(g.new_ones(len(ctx.near.indices))), g.contiguous())
        counts = ctx.near.by_latent[-1].diff()
        d_threshold = threshold * (summed * W_dec).sum(-1) + d_l0 / len(g) * counts
        return g, -d_threshold / ctx.bandwidth, None, None, None, None
