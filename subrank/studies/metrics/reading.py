"""A text at one site as the metrics of dictionaries read it: activations, and sums over tokens resampled by context."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.metrics import estimate_from, resampled
from sae_core.estimate import Estimate
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import inliers
from sae_core.room import check_memory
from sae_core.seeds import generator_for
from sae_core.sites import Site

AT_ONCE = 16
"""Contexts that go through the model together."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Activations of tokens, each with the number of its context; tokens of one context are not independent."""

    x: Float[Tensor, "tokens d_in"]
    context: Int[Tensor, "tokens"]
    weights: Float[Tensor, "resamples contexts"]

    def ratio(self, above: Float[Tensor, "tokens"], below: Float[Tensor, "tokens"]) -> Estimate:
        """sum above / sum below over tokens, with its bootstrap interval over contexts."""
        return estimate_from((above.double().sum() / below.double().sum()).item(), self.resampled(above, below))

    def mean(self, values: Float[Tensor, "tokens"]) -> Estimate:
        """The mean over tokens, with its interval."""
        return self.ratio(values, torch.ones_like(values))

    def resampled(self, above: Float[Tensor, "tokens"], below: Float[Tensor, "tokens"]) -> Float[Tensor, "resamples"]:
        """The ratio in each bootstrap resample."""
        sums = torch.stack([above, below]).double().cpu()
        a, b = sums.new_zeros(2, self.weights.shape[1]).index_add_(1, self.context.cpu(), sums)
        return (self.weights @ a) / (self.weights @ b)

    def chosen(self, rows: Tensor) -> "Rows":
        """Some of the tokens, by a mask or their numbers."""
        return Rows(self.x[rows], self.context[rows], self.weights)

    def fvu(self, x_hat: Float[Tensor, "tokens d_in"]) -> Estimate:
        """sum |x - x_hat|^2 / sum |x - mean x|^2, with its interval; the mean is that of all tokens."""
        return self.ratio((self.x - x_hat).square().sum(-1), (self.x - self.x.mean(0)).square().sum(-1))

    def thinned(self, most: int) -> "Rows":
        """At most so many tokens, drawn from all over the text: every so-and-so-many-th may be one of a kind."""
        drawn = torch.randperm(len(self.x), generator=generator_for(0, "thinned"))[:most]
        return self.chosen(drawn.sort().values.to(self.x.device))


@dataclass(frozen=True, eq=False)
class Reading:
    """Contexts, which of their tokens count (no special ones, no outliers), and the activations at a site."""

    tokens: Int[Tensor, "contexts pos"]
    counted: Bool[Tensor, "contexts pos"]
    h: Float[Tensor, "contexts pos d_in"]

    @cached_property
    def rows(self) -> Rows:
        """The tokens that count, in order."""
        return self.rows_at(self.counted)

    def rows_at(self, chosen: Bool[Tensor, "contexts pos"]) -> Rows:
        """Chosen tokens, in order."""
        return Rows(self.h[chosen], chosen.nonzero()[:, 0], self._weights)

    @cached_property
    def _weights(self) -> Float[Tensor, "resamples contexts"]:
        return resampled(range(len(self.tokens)), 0)


@torch.no_grad()
def read_sites(
    model: LanguageModel, tokens: Int[Tensor, "contexts pos"], limits: Mapping[Site, float], sites: Iterable[Site]
) -> dict[Site, Reading]:
    """The contexts read once, at all sites; tokens of a norm above their site's limit do not count."""
    sites = list(sites)
    needed = 4 * tokens.numel() * sum(model.d_in(site) for site in sites)
    check_memory(needed, model.device, f"activations at {len(sites)} sites", "give fewer --contexts, or a --site")
    parts = [model.record(few, sites) for few in tokens.split(model.at_once(AT_ONCE))]
    content = model.content(tokens).to(model.device)
    recorded = {site: torch.cat([part[site] for part in parts]) for site in sites}
    return {site: Reading(tokens, content & inliers(h, limits[site]), h) for site, h in recorded.items()}
