"""A dictionary's curve against a baseline's on the same prompts, in numbers and in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editing.ioi.curve import Curve, Trace
from editing.ioi.feature_sets import KL, SIZE
from editing.metrics import interval


@dataclass(frozen=True)
class CurveComparison:
    """A dictionary against a baseline on the same prompts, paired."""

    dictionary: str
    baseline: str
    counts: tuple[int, ...]
    """Numbers of patched features that both curves have."""
    difference: tuple[float, ...]
    """KL of the dictionary's less KL of the baseline's; below 0, the dictionary is better."""
    interval: tuple[tuple[float, float], ...]
    """95%, bootstrap over templates, then prompts."""
    edit_sizes: tuple[float, ...]
    """Sizes at which both are compared."""
    size_difference: tuple[float, ...]
    """The same difference between the largest sets whose mean edit is no larger than that."""
    size_interval: tuple[tuple[float, float], ...]

    @property
    def better(self) -> list[int]:
        """Counts at which the whole interval is below zero."""
        return [count for count, (_, high) in zip(self.counts, self.interval, strict=True) if high < 0]

    @property
    def worse(self) -> list[int]:
        """Counts at which the whole interval is above zero."""
        return [count for count, (low, _) in zip(self.counts, self.interval, strict=True) if low > 0]

    @property
    def crossing(self) -> int | None:
        """The least count from which the baseline's KL is the lower one at every further count; None if never."""
        lower = [difference > 0 for difference in self.difference]
        while lower and lower[-1]:
            lower.pop()
        return self.counts[len(lower)] if len(lower) < len(self.counts) else None

    @property
    def better_sizes(self) -> list[float]:
        """Edit sizes at which the whole interval is below zero."""
        return [size for size, (_, high) in zip(self.edit_sizes, self.size_interval, strict=True) if high < 0]

    @property
    def worse_sizes(self) -> list[float]:
        """Edit sizes at which the whole interval is above zero."""
        return [size for size, (low, _) in zip(self.edit_sizes, self.size_interval, strict=True) if low > 0]

    def sentence(self) -> str:
        """Where the dictionary is better, and where not."""
        counts = ", ".join(_ranges(self.counts, self.better)) or "no number of patched features"
        text = f"on the test prompts {self.dictionary} leaves less KL than {self.baseline} at {counts}"
        if not self.better:
            text = f"on the test prompts there is {counts} at which {self.dictionary} beats {self.baseline}"
        if self.crossing is not None:
            text += f"; from {self.crossing} on {self.baseline} is ahead"
        small, large = (", ".join(f"{size:.2f}" for size in sizes) for sizes in (self.better_sizes, self.worse_sizes))
        text += f"; at equal edit size it is better at {small or 'none'}"
        return f"{text} and worse at {large}" if large else text

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
        there = next((point.kl for point in curve.points if point.n_features == self.crossing), None)
        if there is None:
            return text
        verdict = "there it is not the reason" if there - elsewhere > 2 * error else "that is the reason"
        return f"{text}. Where {self.baseline} gets ahead {self.dictionary} is at {there:.3f}: {verdict}"


def compare(
    name: str,
    other: str,
    ours: Trace,
    theirs: Trace,
    weights: Float[Tensor, "resamples batch"],
    edit_sizes: Sequence[float],
) -> CurveComparison:
    """Two curves at equal numbers of features and at equal edit sizes, prompt by prompt."""
    shared = sorted(set(ours.counts) & set(theirs.counts))
    pairs = [(ours.counts.index(count), theirs.counts.index(count)) for count in shared]
    by_count = _paired(ours, theirs, pairs, weights)
    by_size = _paired(ours, theirs, [(_within(ours, size), _within(theirs, size)) for size in edit_sizes], weights)
    return CurveComparison(name, other, tuple(shared), *by_count, tuple(edit_sizes), *by_size)


def _paired(ours: Trace, theirs: Trace, pairs: Sequence[tuple[int, int]], weights: Tensor) -> tuple[tuple, tuple]:
    mine, others = (torch.tensor(rows, dtype=torch.long) for rows in zip(*pairs, strict=True))
    difference = ours.readout[mine, :, KL] - theirs.readout[others, :, KL]  # [pairs, batch]
    low, high = interval(weights @ difference.T).tolist()
    return tuple(difference.mean(1).tolist()), tuple(zip(low, high, strict=True))


def _within(found: Trace, size: float) -> int:
    """The point with the most features whose mean edit is no larger than `size`, but for rounding."""
    small = found.readout[..., SIZE].mean(1) <= size * (1 + 1e-5)
    return int(small.nonzero().max()) if small.any() else 0


def _ranges(counts: Sequence[int], chosen: Sequence[int]) -> list[str]:
    """Counts in words: neighbours among `counts` as a range."""
    found: list[list[int]] = []
    for before, count in zip((None, *counts), counts, strict=False):
        if count in chosen:
            if found and found[-1][-1] == before:
                found[-1].append(count)
            else:
                found.append([count])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in found]
