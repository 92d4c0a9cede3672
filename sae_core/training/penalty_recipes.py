"""Recipes with a penalty for latents that are active: ReLU and Gated (L1), JumpReLU (L0). Units: see `recipe.py`."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core import checks
from sae_core.dictionaries.saes import GatedSAE, JumpReLUSAE, ReLUSAE, TiedSAE
from sae_core.training.recipe import LossContext, Outcome, batch_fvu, check_k, dense_outcome, squared_error


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
        f = sae.encode(x)
        x_hat = sae.decode(f)
        loss = squared_error(x, x_hat) + context.ramp * self.l1 * f.sum(-1).mean() / x.shape[-1]
        return dense_outcome(loss, x, x_hat, f)


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
        f, on = _JumpReLU.apply(sae.pre(x), sae.threshold.clamp_min(0), self.bandwidth)
        x_hat = sae.decode(f)
        fvu, l0 = batch_fvu(x, x_hat), on.sum(-1).mean()
        loss = fvu + context.ramp * self.l0 * (l0 / self.k - 1).square()
        return dense_outcome(loss, x, x_hat, f)


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
        pre = sae.pre(x)
        f, gate = sae.activate(pre), (pre + sae.b_gate).relu()
        x_hat, x_hat_aux = sae.decode(f), gate @ sae.W_dec.detach() + sae.b_dec.detach()
        penalty = context.ramp * self.l1 * gate.sum(-1).mean() / x.shape[-1]
        return dense_outcome(squared_error(x, x_hat) + penalty + squared_error(x, x_hat_aux), x, x_hat, f)


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
        near = (pre - threshold).abs() <= ctx.bandwidth / 2
        d_threshold = -((threshold * d_f + d_on) * near).sum(0) / ctx.bandwidth
        return d_f * on, d_threshold, None
