"""What a dictionary is compared with: decompositions of activations that need no training, or hardly any."""

import math
from collections.abc import Callable, Sequence
from enum import StrEnum

from jaxtyping import Float, Int
from torch import Tensor

from sae_core.data.activations import harvest
from sae_core.dictionaries.baselines import Basis, ica, neurons, nonnegative_pca, pca, random_basis
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import NO_LIMITS, Limits, inliers
from sae_core.seeds import generator_for
from sae_core.sites import Site


class Baseline(StrEnum):
    """A decomposition of activations."""

    PCA = "pca"
    NONNEGATIVE_PCA = "nonnegative_pca"
    NEURONS = "neurons"
    RANDOM_BASIS = "random_basis"
    ICA = "ica"


BASELINE_NAMES = {
    Baseline.PCA: "PCA",
    Baseline.NONNEGATIVE_PCA: "non-negative PCA",
    Baseline.NEURONS: "neurons",
    Baseline.RANDOM_BASIS: "random basis",
    Baseline.ICA: "ICA",
}
"""The names they are shown under."""
HARVESTED = 2**29
"""Bytes that the activations may take from which baselines of several sites are fitted, at one time."""


class FittedBaselines:
    """The baselines of any site, fitted once on the activations at the content positions of `contexts`.

    Outliers by `limits`, those of the dictionaries that they are compared with, are left out.
    """

    def __init__(
        self,
        model: LanguageModel,
        contexts: Int[Tensor, "contexts pos"],
        kinds: Sequence[Baseline],
        seed: int,
        limits: Limits = NO_LIMITS,
    ):
        self.model, self.contexts, self.kinds, self.seed = model, contexts, tuple(kinds), seed
        self.limits = limits
        self._at: dict[Site, dict[str, Dictionary]] = {}

    def at(self, sites: Sequence[Site]) -> dict[str, dict[Site, Dictionary]]:
        """By the name they are shown under, then site; several sites from one pass, as far as memory goes."""
        missing = [site for site in sites if site not in self._at]
        while missing and self.kinds:
            widest = max(self.model.d_in(site) for site in missing)
            n = max(1, HARVESTED // (4 * widest * self.contexts.numel()))
            for site, x in harvest(self.model, self.contexts, tuple(missing[:n])).items():
                limit = self.limits.get(site, math.inf)
                self._at[site] = baselines(self.kinds, x if limit == math.inf else x[inliers(x, limit)], self.seed)
            missing = missing[n:]
        names = [BASELINE_NAMES[kind] for kind in self.kinds]
        return {name: {site: self._at[site][name] for site in sites} for name in names}


def baselines(chosen: Sequence[Baseline], x: Float[Tensor, "tokens d_in"], seed: int) -> dict[str, Dictionary]:
    """The chosen decompositions, by the names they are shown under; fitted on `x` where they are fitted."""
    width = x.shape[-1]
    makers: dict[Baseline, Callable[[], Dictionary]] = {
        Baseline.PCA: lambda: pca(x),
        Baseline.NONNEGATIVE_PCA: lambda: nonnegative_pca(x),
        Baseline.NEURONS: lambda: _to(neurons(width), x),
        Baseline.RANDOM_BASIS: lambda: _to(random_basis(width, generator=generator_for(seed, "random basis")), x),
        Baseline.ICA: lambda: ica(x, generator=generator_for(seed, "ica")),
    }
    return {BASELINE_NAMES[kind]: makers[kind]() for kind in chosen}


def _to(basis: Basis, x: Tensor) -> Basis:
    """A basis on the device and in the precision of `x`."""
    return type(basis)(basis.directions.to(x), basis.mean.to(x))
