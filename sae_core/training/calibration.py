"""What is read off activations and not learnt: their middle, and the threshold that gives a wanted L0."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.dictionaries.saes import JumpReLUSAE


def geometric_median(x: Float[Tensor, "batch d_in"], *, iterations: int = 100) -> Float[Tensor, "d_in"]:
    """The point of least summed distance to the rows, by Weiszfeld's iteration from the mean."""
    middle = x.mean(0)
    for _ in range(iterations):
        weight = 1 / (x - middle).norm(dim=-1, keepdim=True).clamp_min(1e-6)
        moved = (weight * x).sum(0) / weight.sum()
        if (moved - middle).norm() <= 1e-5 * middle.norm():
            return moved
        middle = moved
    return middle


@torch.no_grad()
def calibrate(sae: JumpReLUSAE, x: Float[Tensor, "batch d_in"], k: int) -> float:
    """Set one threshold for all latents at which on average k are active on `x`; returns it.

    The threshold is the mean of the two latents between which the (k * batch)-th largest ends.
    """
    count = k * len(x)
    largest = torch.empty(0, device=x.device, dtype=x.dtype)
    for chunk in x.split(1024):
        pre = sae.pre(chunk).flatten()
        largest = torch.cat([largest, pre[pre > 0]])
        if len(largest) > count + 1:
            largest = largest.topk(count + 1).values
    if len(largest) <= count:  # not even that many are positive
        threshold = 0.0
    else:
        ordered = largest.sort(descending=True).values
        threshold = ((ordered[count - 1] + ordered[count]) / 2).item()
    sae.threshold.data.fill_(threshold)
    return threshold
