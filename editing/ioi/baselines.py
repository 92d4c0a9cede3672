"""What a dictionary is compared with: decompositions that need no training, or hardly any."""

from collections.abc import Callable, Sequence
from enum import StrEnum

from jaxtyping import Float
from torch import Tensor

from sae_core.dictionaries.baselines import ica, neurons, nonnegative_pca, pca, random_basis
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.seeds import generator_for


class Baseline(StrEnum):
    """A decomposition of activations."""

    PCA = "pca"
    NONNEGATIVE_PCA = "nonnegative_pca"
    NEURONS = "neurons"
    RANDOM_BASIS = "random_basis"
    ICA = "ica"


SHOWN = {
    Baseline.PCA: "PCA",
    Baseline.NONNEGATIVE_PCA: "non-negative PCA",
    Baseline.NEURONS: "neurons",
    Baseline.RANDOM_BASIS: "random basis",
    Baseline.ICA: "ICA",
}
"""The names they are shown under."""


def baselines(chosen: Sequence[Baseline], x: Float[Tensor, "tokens d_in"], seed: int) -> dict[str, Dictionary]:
    """The chosen decompositions, by the names they are shown under; fitted on `x` where they are fitted."""
    chance = {name: generator_for(seed, name) for name in ("random basis", "ica")}
    makers: dict[Baseline, Callable[[], Dictionary]] = {
        Baseline.PCA: lambda: pca(x),
        Baseline.NONNEGATIVE_PCA: lambda: nonnegative_pca(x),
        Baseline.NEURONS: lambda: _to(neurons(x.shape[-1]), x),
        Baseline.RANDOM_BASIS: lambda: _to(random_basis(x.shape[-1], generator=chance["random basis"]), x),
        Baseline.ICA: lambda: ica(x, generator=chance["ica"]),
    }
    return {SHOWN[name]: makers[name]() for name in chosen}


def _to(dictionary, x: Tensor):
    """A basis where `x` is."""
    return type(dictionary)(dictionary.directions.to(x), dictionary.mean.to(x))
