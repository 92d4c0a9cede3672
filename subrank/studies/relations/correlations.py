"""How well the activations of latents of two dictionaries agree on the same places of a text.

    r_ij = (mean a_i b_j - mean a_i  mean b_j) / (sd a_i  sd b_j)        Pearson's correlation over places

summed up place by place, so that no activation is kept. A latent that is active on fewer than `FEWEST` places has no
correlation worth the name, and is left out. Cost: n_a x n_b additions per place.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_core.estimate import Estimate
from sae_core.sites import Site
from subrank.studies.relations.shares import mean_estimate, share

FEWEST = 10
"""Places on which a latent has to be active."""
MATCHED = 0.5
"""Correlation from which on a latent counts as matched."""


@dataclass(frozen=True)
class Match:
    """Two sites: how well the latents of each find a partner at the other."""

    site: Site
    other: Site
    n: int
    """Latents of the first that are active on at least `FEWEST` places."""
    n_other: int
    matched: Estimate
    """Share of the first one's latents whose best partner correlates by at least `MATCHED`; Wilson's interval."""
    matched_by_chance: Estimate
    """The same with the places of the other shifted."""
    matched_other: Estimate
    """Share of the other's latents, likewise."""
    matched_other_by_chance: Estimate
    best: Estimate
    """Mean correlation of the first one's latents with their best partners; resampled over latents."""
    best_by_chance: Estimate
    pairs: tuple[tuple[int, int, float], ...]
    """The best partners of each other: latent, partner, correlation, from the largest on."""


@dataclass(frozen=True)
class Partners:
    """A pair of latents that are each other's best partners, in words."""

    feature: str
    partner: str
    correlation: float
    words: str
    """Where the first is most active."""
    partner_words: str


class Correlations:
    """Sums over places, from which the correlations of all pairs of latents follow."""

    def __init__(self, n: int, n_other: int):
        self.n_places = 0
        self.sums = [torch.zeros(size, dtype=torch.float64) for size in (n, n_other)]
        self.squares = [torch.zeros(size, dtype=torch.float64) for size in (n, n_other)]
        self.active = [torch.zeros(size, dtype=torch.int64) for size in (n, n_other)]
        self.products = torch.zeros(n, n_other)

    def add(self, a: Float[Tensor, "places n"], b: Float[Tensor, "places n_other"]) -> None:
        """Activations of both on the same places."""
        self.n_places += len(a)
        for side, values in enumerate((a, b)):
            self.sums[side] += values.sum(0, dtype=torch.float64)
            self.squares[side] += values.double().square().sum(0)
            self.active[side] += (values > 0).sum(0)
        self.products += a.T @ b

    def often(self) -> tuple[Bool[Tensor, "n"], Bool[Tensor, "n_other"]]:
        """The latents of either that are active on at least `FEWEST` places."""
        return self.active[0] >= FEWEST, self.active[1] >= FEWEST

    def pearson(self) -> Float[Tensor, "n n_other"]:
        """The correlations; 0 with a latent that is the same everywhere."""
        means = [total / self.n_places for total in self.sums]
        sd, sd_other = (
            (square / self.n_places - mean.square()).clamp_min(0).sqrt()
            for square, mean in zip(self.squares, means, strict=True)
        )
        covariance = self.products.double() / self.n_places - means[0][:, None] * means[1]
        return torch.where((sd[:, None] * sd_other) > 0, covariance / (sd[:, None] * sd_other), 0.0).float()


def match(site: Site, other: Site, counted: Correlations, shifted: Correlations, seed: int) -> Match:
    """What the correlations say of two sites; `shifted` are those of places that do not belong together."""
    often, often_other = counted.often()
    r, by_chance = (sums.pearson()[often][:, often_other] for sums in (counted, shifted))
    if not r.numel():
        nothing = Estimate(math.nan)
        return Match(site, other, int(often.sum()), int(often_other.sum()), *[nothing] * 6, pairs=())
    forward, backward = r.max(1), r.max(0)
    if not shifted.n_places:  # a single passage has none before it
        by_chance = by_chance[:0, :0]
    mutual = [i for i, j in enumerate(forward.indices.tolist()) if backward.indices[j] == i]
    mutual.sort(key=lambda i: -forward.values[i])
    latents, partners = often.nonzero()[:, 0].tolist(), often_other.nonzero()[:, 0].tolist()
    return Match(
        site=site,
        other=other,
        n=len(latents),
        n_other=len(partners),
        matched=share(forward.values >= MATCHED),
        matched_by_chance=share(_best(by_chance, 1) >= MATCHED),
        matched_other=share(backward.values >= MATCHED),
        matched_other_by_chance=share(_best(by_chance, 0) >= MATCHED),
        best=mean_estimate(forward.values, seed),
        best_by_chance=mean_estimate(_best(by_chance, 1), seed),
        pairs=tuple((latents[i], partners[forward.indices[i]], round(forward.values[i].item(), 4)) for i in mutual),
    )


def _best(r: Float[Tensor, "n n_other"], dim: int) -> Float[Tensor, "_"]:
    """The largest along a dimension; none of nothing."""
    return r.amax(dim) if r.numel() else r.new_zeros(0)
