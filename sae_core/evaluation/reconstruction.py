"""How well a dictionary explains activations: the numbers, and what they mean. `profiles.py` measures them."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_BINS_PER_DECADE = 4


def fvu(x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> float:
    """Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - mean x|^2, over all tokens and dimensions."""
    wide = x.double()
    return ((wide - x_hat.double()).pow(2).sum() / (wide - wide.mean(0)).pow(2).sum()).item()


def l0(f: Float[Tensor, "batch n_latents"]) -> float:
    """Mean number of active latents per token."""
    return (f != 0).sum(-1).double().mean().item()


@dataclass(frozen=True)
class OutlierToken:
    """A token that was left out."""

    context: int
    """Its context's number among those measured."""
    position: int
    text: str
    """The token, and what stands before it."""
    norm: float


@dataclass(frozen=True)
class Outliers:
    """The tokens that a dictionary leaves out (`sae_core/outliers.py`), and what the numbers are with them."""

    limit: float
    """Tokens of a larger norm are outliers."""
    n: int
    variance: float
    """Their share of the variance of all tokens."""
    fvu: float
    """FVU over all tokens, theirs by the codes that they would have."""
    tokens: tuple[OutlierToken, ...]
    """The first few."""

    @property
    def matter(self) -> bool:
        """Whether a reader should know of them: they carry more than 5% of the variance."""
        return self.variance > 0.05


@dataclass(frozen=True)
class Quality:
    """A dictionary on a text; outliers are left out of all numbers but those in `outliers`."""

    fvu: float
    l0: float
    dead: float
    """Share of latents that are not active on any of `n_tokens`."""
    n_tokens: int
    fvu_median: float = math.nan
    """Median over tokens of |x - x_hat|^2 / |x - m|^2, m being the mean of the first contexts' tokens."""
    outliers: Outliers | None = None
    """What was left out of the numbers; None where the dictionary leaves nothing out."""

    def warning(self) -> str:
        """A line on outliers where they carry much of the variance; empty where they do not."""
        if self.outliers is None or not self.outliers.matter:
            return ""
        return (
            f"{self.outliers.n} of {self.outliers.n + self.n_tokens} tokens are of massive norm and carry "
            f"{self.outliers.variance:.0%} of the variance; they are left out (FVU with them {self.outliers.fvu:.3f})"
        )


@dataclass(frozen=True)
class Part:
    """A dictionary on some of a text's tokens.

    FVU within a part is its squared error over its squared distance from the mean of *all* tokens, so that
    the FVU of the text is the mean of its parts', weighted by that distance.
    """

    name: str
    n_tokens: int
    fvu: float
    l0: float


@dataclass(frozen=True, eq=False)
class Profile:
    """Everything that one pass over a text says about a dictionary."""

    quality: Quality
    cosine: float
    """Mean over tokens of cos(x, x_hat); tokens with x = 0 are left out of it."""
    norm_ratio: float
    """Mean over tokens of |x_hat| / |x|; below 1, the dictionary shrinks."""
    density: Float[Tensor, "n_latents"]
    """Share of tokens on which each latent is active."""
    at_start: tuple[int, ...]
    """Latents with at least 4 active tokens, and half of all theirs, at the first content token of a context."""
    by_position: tuple[Part, ...]
    """Tokens by their place in the context, counted from 0 (BOS, if there is one)."""
    by_frequency: tuple[Part, ...]
    """Tokens by the rank of their token among all measured: `1-10` are the ten commonest."""
    mean: Float[Tensor, "d_in"]
    """Mean activation over the tokens, in float64."""

    @property
    def n_alive(self) -> int:
        """Latents that are active somewhere."""
        return int((self.density > 0).sum())

    def histogram(self) -> tuple[list[float], list[int]]:
        """(edges, counts) of log10 density over the latents that are not dead, in quarters of a decade up to 0.

        The edges depend on the number of tokens only, so that dictionaries measured together share them.
        """
        n_bins = math.ceil(_BINS_PER_DECADE * math.log10(max(self.quality.n_tokens, 2)))
        edges = torch.arange(-n_bins, 1, dtype=torch.float64) / _BINS_PER_DECADE
        alive = self.density[self.density > 0].log10()
        bins = torch.bucketize(alive, edges, right=True).clamp(1, n_bins) - 1
        return edges.tolist(), torch.bincount(bins, minlength=n_bins).tolist()
