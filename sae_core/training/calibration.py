"""What is read off activations and not learnt: their scale and middle, and the threshold that gives a wanted L0."""

import math
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.dictionaries.saes import JumpReLUSAE
from sae_core.errors import UserError
from sae_core.outliers import NO_LIMITS, Limits, norm_limit
from sae_core.sites import Site
from sae_core.training.inputs import ActivationSource


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


def outlier_norms(stream: ActivationSource, factor: float) -> dict[Site, float]:
    """For each site the norm above which a token is an outlier, by the median norm of the first 2^15 tokens."""
    if not factor:
        return dict.fromkeys(stream.sites, math.inf)
    norms: dict[Site, list[Tensor]] = {site: [] for site in stream.sites}
    for batch in islice(stream.block(0), max(2, 2**15 // stream.batch)):
        for site, x in batch.items():
            norms[site].append(torch.linalg.vector_norm(x, dim=-1))
    return {site: norm_limit(torch.cat(parts), factor) if parts else math.inf for site, parts in norms.items()}


def scales_and_centres(stream: ActivationSource, limits: Limits = NO_LIMITS) -> dict[Site, tuple[float, Tensor]]:
    """For each site the factor at which E|x|^2 = d_in, and the geometric median of activations times that.

    Of the first 2^17 tokens the factor, of the first 2^12 the median, without outliers. One batch is held at a time,
    since a stream may keep its whole block beside it.
    """
    squares, rows, n = dict.fromkeys(stream.sites, 0.0), {site: [] for site in stream.sites}, 0
    for batch in islice(stream.block(0, limits), max(2, 2**17 // stream.batch)):
        for site, x in batch.items():
            squares[site] += x.pow(2).sum().item()
            if n < 2**12:
                rows[site].append(x[: 2**12 - n].clone())
        n += len(next(iter(batch.values())))
    if not n:
        raise UserError(f"a block holds fewer than {stream.batch} tokens; give a smaller --batch or more text")
    result = {}
    for site in stream.sites:
        x = torch.cat(rows.pop(site))
        scale = math.sqrt(x.shape[-1] * n / squares[site]) if 0 < squares[site] < math.inf else math.nan
        if not 0 < scale < math.inf:
            raise UserError(f"the activations at {site} hold NaN or infinity, or are all zero; look at the model")
        result[site] = scale, scale * geometric_median(x)
    return result


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
