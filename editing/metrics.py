"""Numbers read off logits."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def kl_divergence(
    clean: Float[Tensor, "*batch vocab"], edited: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(clean || edited) = sum_v p_clean (log p_clean - log p_edited), in nats, from logits."""
    p, q = clean.log_softmax(-1), edited.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def logit_difference(
    logits: Float[Tensor, "*batch vocab"], answer: Int[Tensor, "*batch"], foil: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """logit(answer) - logit(foil)."""
    return logits.gather(-1, torch.stack([answer, foil], -1)).diff(dim=-1)[..., 0].neg()


def auroc(scores: Float[Tensor, "n"], positive: Bool[Tensor, "n"]) -> float:
    """Chance that a positive case scores above a negative one, ties counting half.

    Raises `ValueError` unless both classes are there.
    """
    if not positive.any() or positive.all():
        raise ValueError("AUROC needs cases of both classes")
    difference = scores[positive][:, None] - scores[~positive][None]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()
