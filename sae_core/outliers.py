"""Tokens of massive norm, and the rule by which they are left out.

Language models park activations of enormous norm on a few tokens, mostly the first of a text (Sun et al. 2024,
Massive Activations in Large Language Models). A token is an outlier at a site when

    |x| > outlier_norm = factor * median |x|        (median over content tokens, factor 10 by default)

A dictionary that has an `outlier_norm` gives outliers zero codes, so that no latent is active on them: they steer no
training, and no edit of latents moves them. `math.inf`, the default, makes nothing an outlier.
"""

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_core.sites import Site

FACTOR = 10.0
"""Multiple of a site's median norm beyond which a token is an outlier."""

Limits = Mapping[Site, float]
"""The `outlier_norm` of each site; a site that is not named has none."""
NO_LIMITS: Limits = MappingProxyType({})


def norm_limit(norms: Float[Tensor, "tokens"], factor: float) -> float:
    """factor * median norm; infinite where the factor or the median is 0: nothing is an outlier then."""
    median = norms.median().item()
    return factor * median if factor and median > 0 else math.inf


def inliers(x: Float[Tensor, "*batch d_in"], limit: float) -> Bool[Tensor, "*batch"]:
    """Which tokens are no outliers. Activations that are NaN count as inliers, so that they are noticed elsewhere."""
    return ~(torch.linalg.vector_norm(x, dim=-1) > limit)


def inliers_everywhere(rows: Mapping[Site, Tensor], limits: Limits) -> Bool[Tensor, "*batch"] | None:
    """Which tokens are outliers at no site; None where no site has a limit."""
    masks = [inliers(x, limits[site]) for site, x in rows.items() if limits.get(site, math.inf) < math.inf]
    return torch.stack(masks).all(0) if masks else None


def limits_of(sets: Iterable[Mapping[Site, object]]) -> Limits:
    """The limit of each site: the least of those of its dictionaries."""
    limits: dict[Site, float] = {}
    for dictionaries in sets:
        for site, dictionary in dictionaries.items():
            limits[site] = min(limits.get(site, math.inf), outlier_norm_of(dictionary))
    return limits


def outlier_norm_of(sparing: object) -> float:
    """The norm beyond which a dictionary, or an edit, leaves tokens alone; infinite for a baseline."""
    return getattr(sparing, "outlier_norm", math.inf)
