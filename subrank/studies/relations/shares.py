"""Shares and means over latents, with their intervals."""

import math

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from editing.metrics import bootstrap_estimate, resampled
from editing.tasks.score import wilson_interval
from sae_core.estimate import Estimate


def share(of: Bool[Tensor, "n"]) -> Estimate:
    """The share of true values, with Wilson's interval; NaN where there are no values."""
    n, n_true = len(of), int(of.sum())
    return Estimate(n_true / n, *wilson_interval(n_true, n)) if n else Estimate(math.nan)


def mean_estimate(values: Float[Tensor, "n"], seed: int) -> Estimate:
    """The mean, with a bootstrap interval from two values on; NaN where there are none."""
    if len(values) < 2:  # one value says nothing of how others would be
        return Estimate(values.item() if len(values) else math.nan)
    return bootstrap_estimate(values, resampled(range(len(values)), seed))


def percent(value: Estimate) -> str:
    """The number as a whole percentage."""
    return "–" if value.value != value.value else f"{value.value:.0%}"


def shuffled(rows: Shaped[Tensor, "n *shape"], generator: torch.Generator) -> Shaped[Tensor, "n *shape"]:
    """The same rows in another order."""
    return rows[torch.randperm(len(rows), generator=generator)]
