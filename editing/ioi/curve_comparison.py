"""A dictionary's curve against a baseline's on the same prompts, in numbers and in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editing.ioi.curve import Curve, Trace
from editing.metrics import interval
from sae_core.estimate import Estimate


@dataclass(frozen=True)
class CurveComparison:
    """A dictionary against a baseline on the same prompts, paired.

    Differences are KL of the dictionary's less KL of the baseline's, below 0 where the dictionary is better, with
    95% intervals: bootstrap over templates, then prompts.
    """

    dictionary: str
    baseline: str
    counts: tuple[int, ...]
    """Numbers of patched features that both curves have."""
    difference: tuple[Estimate, ...]
    """At each of these counts."""
    edit_sizes: tuple[float, ...]
    """Sizes at which both are compared."""
    size_difference: tuple[Estimate, ...]
    """At each of these sizes: between the largest sets whose mean edit is no larger than that."""

    @property
    def better(self) -> list[int]:
        """Counts at which the whole interval is below zero."""
        return [count for count, kl in zip(self.counts, self.difference, strict=True) if kl.high < 0]

    @property
    def worse(self) -> list[int]:
        """Counts at which the whole interval is above zero."""
        return [count for count, kl in zip(self.counts, self.difference, strict=True) if kl.low > 0]

    @property
    def crossing(self) -> int | None:
        """The least count from which the baseline's KL is the lower one at every further count; None if never."""
        lower = [kl.value > 0 for kl in self.difference]
        while lower and lower[-1]:
            lower.pop()
        return self.counts[len(lower)] if len(lower) < len(self.counts) else None

    @property
    def better_sizes(self) -> list[float]:
        """Edit sizes at which the whole interval is below zero."""
        return [size for size, kl in zip(self.edit_sizes, self.size_difference, strict=True) if kl.high < 0]

    @property
    def worse_sizes(self) -> list[float]:
        """Edit sizes at which the whole interval is above zero."""
        return [size for size, kl in zip(self.edit_sizes, self.size_difference, strict=True) if kl.low > 0]

    def reason(self, floor: Mapping[str, float], curve: Curve) -> str:
        """What keeps the dictionary from the clean run, and whether that is why the baseline gets ahead.

        `floor` and `curve` are the dictionary's.
        """
        left, elsewhere = floor["all_latents"], floor["all_latents_and_error"]
        error = left - elsewhere
        text = f"With every latent patched {self.dictionary} leaves {left:.3f} of {floor['nothing']:.3f} nats: "
        if elsewhere > 0.005 * floor["nothing"]:
            text += f"{elsewhere:.3f} that no patch there can carry, and {error:.3f} of error, "
        text += "the change of its error term, which no latent carries; a complete basis has no error"
        there = next((point.kl.value for point in curve.points if point.n_features == self.crossing), None)
        if there is None:
            return text
        verdict = "there it is not the reason" if there - elsewhere > 2 * error else "that is the reason"
        return f"{text}. Where {self.baseline} gets ahead {self.dictionary} is at {there:.3f}: {verdict}"


def compare_curves(
    dictionary: tuple[str, Trace],
    baseline: tuple[str, Trace],
    weights: Float[Tensor, "resamples batch"],
    edit_sizes: Sequence[float],
) -> CurveComparison:
    """Two named curves at equal numbers of features and at equal edit sizes, prompt by prompt."""
    (name, of_dictionary), (other, of_baseline) = dictionary, baseline
    counts = sorted(set(of_dictionary.counts) & set(of_baseline.counts))
    at_counts = [(of_dictionary.counts.index(count), of_baseline.counts.index(count)) for count in counts]
    at_sizes = [(_within(of_dictionary, size), _within(of_baseline, size)) for size in edit_sizes]
    return CurveComparison(
        dictionary=name,
        baseline=other,
        counts=tuple(counts),
        difference=_paired(of_dictionary, of_baseline, at_counts, weights),
        edit_sizes=tuple(edit_sizes),
        size_difference=_paired(of_dictionary, of_baseline, at_sizes, weights),
    )


def _paired(
    of_dictionary: Trace, of_baseline: Trace, points: Sequence[tuple[int, int]], weights: Tensor
) -> tuple[Estimate, ...]:
    """Mean difference in KL between a point of each curve, for every pair of points, with its interval."""
    our_rows, their_rows = (torch.tensor(rows, dtype=torch.long) for rows in zip(*points, strict=True))
    difference = of_dictionary.readout.kl[our_rows] - of_baseline.readout.kl[their_rows]  # [pairs of points, batch]
    low, high = interval(weights @ difference.T).tolist()
    return tuple(map(Estimate, difference.mean(1).tolist(), low, high))


def _within(curve: Trace, size: float) -> int:
    """The point with the most features whose mean edit is no larger than `size`, but for rounding."""
    small = curve.readout.edit_size.mean(1) <= size * (1 + 1e-5)
    return int(small.nonzero().max()) if small.any() else 0


def ranges(counts: Sequence[int], chosen: Sequence[int]) -> list[str]:
    """The chosen of `counts` in words: neighbours among `counts` as a range."""
    runs: list[list[int]] = []
    for before, count in zip((None, *counts), counts, strict=False):
        if count in chosen:
            if runs and runs[-1][-1] == before:
                runs[-1].append(count)
            else:
                runs.append([count])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
