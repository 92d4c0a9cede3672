"""A target together with the prompts on which it is read."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from circuits.effects.targets import Target
from circuits.features.atlas import Examples


@dataclass(frozen=True, eq=False)
class TargetPrompts:
    """A target, its examples, and the examples' corrupted counterparts where these exist."""

    target: Target
    examples: Examples
    """Prompts, each with the position at which the target is read and its clean value there."""
    corrupted: Int[Tensor, "examples pos"] | None = None
    """Counterparts aligned with the examples position by position, for ablation by resampling."""
