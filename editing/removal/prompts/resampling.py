"""Bootstrap intervals of AUROCs over prompts that share names and templates.

Where each name occurs in many templates, names and templates are drawn with replacement independently of each other,
as many as there are, and a prompt weighs the product of how often its two were drawn (the pigeonhole bootstrap, Owen
2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1): prompts that share either are not independent.
Elsewhere templates are drawn, then prompts within them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from editing.metrics import auroc, interval, resampled, weighted_aurocs
from editing.removal.prompts.two_class_prompts import TwoClassPrompts
from sae_core.estimate import Estimate

Weights = Float[Tensor, "resamples batch"]


def resampling_scheme(prompts: TwoClassPrompts) -> str:
    """What `bootstrap_weights` draws, in words."""
    return "templates, then prompts" if prompts.name is None else "names and templates, crossed"


def bootstrap_weights(prompts: TwoClassPrompts, seed: int, n: int = 1000) -> Weights:
    """The weight of every prompt in each of at most `n` bootstrap resamples; a row sums to one.

    A crossed resample in which no drawn name occurs in a drawn template is left out.
    """
    if prompts.name is None:
        return resampled(prompts.template, seed, n)
    rng = np.random.default_rng(seed)
    weights = torch.ones(n, len(prompts), dtype=torch.float64)
    for label in (prompts.template, prompts.name):
        labels, index = label.unique(return_inverse=True)
        counts = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=n)
        weights *= torch.from_numpy(counts).double()[:, index]
    weights = weights[weights.sum(1) > 0]
    return weights / weights.sum(1, keepdim=True)


def pooled_auroc(prompts: TwoClassPrompts, scores: Float[Tensor, "batch"], weights: Weights) -> Estimate:
    """The AUROC over all prompts."""
    return mean_auroc(prompts, [torch.ones_like(prompts.positive)], scores, weights)


def mean_auroc(
    prompts: TwoClassPrompts, parts: Sequence[Bool[Tensor, "batch"]], scores: Float[Tensor, "batch"], weights: Weights
) -> Estimate:
    """The mean of the AUROCs within parts of the prompts, whose scores need not be comparable with each other."""
    masked = [(scores[part], prompts.positive[part], weights[:, part]) for part in parts]
    mean = sum(auroc(part_scores, positive) for part_scores, positive, _ in masked) / len(masked)
    resamples = torch.stack([weighted_aurocs(*part) for part in masked]).nanmean(0)
    return Estimate(mean, *interval_of(resamples))


def conditional_auroc(prompts: TwoClassPrompts, scores: Float[Tensor, "batch"], weights: Weights) -> Estimate:
    """The group-conditional AUROC, A = 0.5 + mean over groups of |AUROC - 0.5|.

    The interval is that of the basic bootstrap, [2 A - q_97.5, 2 A - q_2.5] within [0.5, 1]: a mean of absolute values
    is larger in every resample, by as much as chance adds, so that quantiles would lie above the estimate. In a
    resample only the groups count that have both classes there.
    """
    groups = prompts.groups_of_both_classes()
    masked = [(scores[group], prompts.positive[group], weights[:, group]) for group in groups]
    value = 0.5 + sum(abs(auroc(part, positive) - 0.5) for part, positive, _ in masked) / len(groups)
    resamples = 0.5 + torch.stack([(weighted_aurocs(*part) - 0.5).abs() for part in masked]).nanmean(0)
    high, low = (min(1.0, max(0.5, 2 * value - end)) for end in interval_of(resamples))
    return Estimate(value, min(low, value), max(high, value))


def interval_of(resamples: Float[Tensor, "resamples"]) -> tuple[float, float]:
    """The 95% interval of a resampled share over the resamples in which it is defined; [0, 1] if there is none."""
    if resamples.isnan().all():
        return 0.0, 1.0
    low, high = interval(resamples[~resamples.isnan()]).tolist()
    return low, high
