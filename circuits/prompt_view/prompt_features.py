"""A prompt, layer by token, as plain values: what is active where, and what it does to the next token."""

import math
from dataclasses import dataclass

from sae_core.sites import FeatureId, Site


@dataclass(frozen=True)
class Likely:
    """A next token and its probability."""

    token: str
    probability: float


@dataclass(frozen=True)
class PromptToken:
    """A token of the prompt, and what the model expects after it."""

    text: str
    special: bool
    """Whether it is BOS or another special token, on which no feature is read."""
    probability: float | None
    """What the model gave it, from the tokens before; None for the first."""
    likely: tuple[Likely, ...]
    """The most probable next tokens."""
    follows: str
    """The token, or the difference, whose logit direct effects at this position are on."""


@dataclass(frozen=True)
class ActiveFeature:
    """A feature where it is active, and what it does (see above)."""

    feature: FeatureId
    activation: float
    direct: float
    first_order: float
    exact: float | None = None
    control: float | None = None


@dataclass(frozen=True)
class Cell:
    """A site at a token."""

    site: Site
    position: int
    n_active: int
    norm: float
    """|x|"""
    error: float
    """|x - x_hat| / |x|: the share of the norm that is not in the dictionary."""
    error_first_order: float
    outlier: bool
    """Whether the token's norm is massive at this site, so that no feature is active."""
    features: tuple[ActiveFeature, ...]
    """The most active first."""


@dataclass(frozen=True)
class PromptFeatures:
    """A prompt, layer by token."""

    tokens: tuple[PromptToken, ...]
    cells: tuple[Cell, ...]
    """By site, and at each by position; special tokens have none."""
    readout: str
    """What m reads, in words."""
    value: float
    """m at the prompt's end."""
    probability: float
    """Of the token `plus` there."""

    @property
    def cross_entropy(self) -> float:
        """Nats per token of the prompt, the first left out; NaN for a prompt of one token."""
        losses = [-math.log(max(t.probability, 1e-45)) for t in self.tokens if t.probability is not None]
        return math.fsum(losses) / len(losses) if losses else math.nan

    def exact(self) -> list[tuple[Cell, ActiveFeature]]:
        """The features with an exact effect, the largest first."""
        pairs = [(cell, each) for cell in self.cells for each in cell.features if each.exact is not None]
        return sorted(pairs, key=lambda pair: -abs(pair[1].exact or 0))
