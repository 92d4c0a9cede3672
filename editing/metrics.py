"""Numbers read off logits, and how far a mean of them can be trusted."""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.estimate import Estimate


def kl_divergence(
    clean: Float[Tensor, "*batch vocab"], edited: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(clean || edited) = sum_v p_clean (log p_clean - log p_edited), in nats, from logits."""
    return kl_from_log_probs(clean.log_softmax(-1), edited.log_softmax(-1))


def kl_from_log_probs(
    clean: Float[Tensor, "*#batch vocab"], edited: Float[Tensor, "*#batch vocab"]
) -> Float[Tensor, "*batch"]:
    """`kl_divergence` where both are log probabilities already; their leading dimensions broadcast."""
    return (clean.exp() * (clean - edited)).sum(-1)


def logit_difference(
    logits: Float[Tensor, "*batch vocab"], answer: Int[Tensor, "*batch"], foil: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """logit(answer) - logit(foil)."""
    return logits.gather(-1, torch.stack([answer, foil], -1)).diff(dim=-1)[..., 0].neg()


def auroc(scores: Float[Tensor, "n"], positive: Bool[Tensor, "n"]) -> float:
    """Chance that a positive case scores above a negative one, ties counting half.

    Raises `ValueError` unless both classes are there.
    """
    return aurocs(scores[None], positive).item()


def aurocs(scores: Float[Tensor, "trials n"], positive: Bool[Tensor, "n"]) -> Float[Tensor, "trials"]:
    """`auroc` of every row: (R - n_+ (n_+ + 1) / 2) / (n_+ n_-), R the sum of the positives' ranks (Mann-Whitney).

    In float64 on the CPU; ties get the mean of their ranks.
    """
    from scipy.stats import rankdata  # slow to import

    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        raise ValueError("AUROC needs cases of both classes")
    ranks = torch.from_numpy(rankdata(scores.detach().cpu().numpy(), axis=-1))
    above = ranks[:, positive.cpu()].sum(-1) - n_positive * (n_positive + 1) / 2
    return above / (n_positive * n_negative)


def weighted_aurocs(
    scores: Float[Tensor, "n"], positive: Bool[Tensor, "n"], weights: Float[Tensor, "resamples n"]
) -> Float[Tensor, "resamples"]:
    """AUROC with weighted cases, for each row of weights; NaN where a class has no weight.

        sum_ij w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / (sum_i w_i  sum_j w_j),    i positive, j negative

    Computed for all rows at once, where scikit-learn would sort anew for each.
    """
    difference = scores[positive][:, None].double() - scores[~positive].double()
    above = (difference > 0).double() + 0.5 * (difference == 0).double()
    positive_weights, negative_weights = weights[:, positive], weights[:, ~positive]
    area = ((positive_weights @ above) * negative_weights).sum(1) / (positive_weights.sum(1) * negative_weights.sum(1))
    return area.clamp(0, 1)  # rounding


def resampled(
    groups: Sequence[Hashable] | Int[Tensor, "batch"], seed: int, n: int = 1000
) -> Float[Tensor, "resamples batch"]:
    """The weights that each of `n` bootstrap resamples gives to every value; a row sums to one.

    Groups are drawn with replacement, as many as there are, then from each drawn group its own number of
    members: values that share a group (a template) are not taken for independent. `weights @ values` are the
    resampled means, for any number of quantities of the same prompts. Cost O(n batch).
    """
    labels = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    if not labels:
        raise ValueError("a bootstrap needs at least one value")
    members: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=n)
    weights = np.zeros((n, len(labels)))
    for times, group in zip(drawn.T, members.values(), strict=True):
        weights[:, group] = rng.multinomial(times * len(group), np.full(len(group), 1 / len(group)))
    return torch.from_numpy(weights / weights.sum(1, keepdims=True))


def interval(resamples: Float[Tensor, "resamples *shape"]) -> Float[Tensor, "2 *shape"]:
    """The 2.5% and 97.5% quantiles of resampled statistics; NaN where one of them is NaN."""
    return resamples.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)


def estimate_from(value: float, resamples: Float[Tensor, "resamples"]) -> Estimate:
    """`value`, a statistic of all prompts, with the 95% interval of the same statistic's `resamples`."""
    return Estimate(value, *interval(resamples).tolist())


def bootstrap_estimate(values: Float[Tensor, "batch"], weights: Float[Tensor, "resamples batch"]) -> Estimate:
    """The mean of `values` with its 95% interval, the quantiles of `weights @ values`; `weights` of `resampled`.

    Computed in float64 on the CPU. With a group to each value it is the ordinary percentile bootstrap. Few groups make
    it too narrow: percentiles do not know how few there were. Quantities of the same prompts share their weights, so
    that their differences are compared prompt by prompt.
    """
    values = values.double().cpu()
    return estimate_from(values.mean().item(), weights @ values)
