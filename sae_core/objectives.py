"""What training minimises."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_core.saes import TopKSAE


@dataclass(frozen=True, eq=False)
class Outcome:
    """Loss of one batch, and what progress reports and the count of dead latents need."""

    loss: Tensor
    fvu: Tensor
    """Of this batch, with the batch's own mean."""
    active: Tensor
    """Which latents were active on any token, `[n_latents]` bool."""
    l0: Tensor


def topk_objective(
    sae: TopKSAE, x: Float[Tensor, "batch d_in"], dead: Bool[Tensor, "n_latents"], *, aux: float = 1 / 32
) -> Outcome:
    """FVU of the batch, plus `aux` times the share of the error that dead latents fail to explain.

        loss = sum |x - x_hat|^2 / sum |x - mean x|^2  +  aux * sum |e - e_hat|^2 / sum |e - mean e|^2

    with e = x - x_hat (no gradient) and e_hat the decoding, without bias, of the d_in / 2 largest dead
    latents (AuxK; Gao et al. 2024, appendix A.2). Its gradient reaches encoder and decoder of dead
    latents, and through the encoder's input `b_dec`; nothing of a live latent.
    """
    pre = sae.pre(x)
    f = sae.choose(pre)
    error = x - sae.decode(f)
    fvu = error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    loss, n_dead = fvu, int(dead.sum())
    if n_dead and aux:
        chosen = pre.masked_fill(~dead, -torch.inf).topk(min(n_dead, max(1, x.shape[-1] // 2)), dim=-1)
        f_dead = torch.zeros_like(pre).scatter(-1, chosen.indices, chosen.values.relu())
        target = error.detach()
        missed = (f_dead @ sae.W_dec - target).pow(2).sum() / (target - target.mean(0)).pow(2).sum()
        loss = fvu + aux * torch.nan_to_num(missed)
    active = f.detach() > 0
    return Outcome(loss, fvu.detach(), active.any(0), active.sum(-1).float().mean())
