"""What a curve and its comparisons with all baselines say, in one sentence."""

from collections.abc import Container, Sequence

from editing.ioi.curve import Curve, PatchingPoint
from editing.ioi.curve_comparison import CurveComparison, ranges

FEW = 16
"""Features at which methods are named with their KL."""


def verdict(name: str, curves: Sequence[Curve], comparisons: Sequence[CurveComparison]) -> str:
    """One sentence of under 40 words: KL with few features beside the best baseline, and who is ahead where.

    Ahead means that the 95% interval of the paired difference leaves zero out, against every baseline, or for one.
    """
    points = {curve.name: _with_few(curve) for curve in curves}
    ours, nothing = points[name], next(curve for curve in curves if curve.name == name).points[0]
    text = f"with {ours.n_features} features {name} leaves {ours.kl.value:.2f} of {nothing.kl.value:.2f} nats"
    rival = best_rival(name, curves, {each.dictionary for each in comparisons})
    if rival is None or not comparisons:
        return text
    counts = comparisons[0].counts
    ahead = [count for count in counts if all(count in each.better for each in comparisons)]
    losing = {each.baseline: set(each.worse) for each in comparisons if each.worse}
    behind = [count for count in counts if any(count in worse for worse in losing.values())]
    text += f", the best baseline ({rival}) {points[rival].kl.value:.2f}; "
    text += f"it beats every baseline at {_at(counts, ahead)}" if ahead else "it beats every baseline nowhere"
    if not behind:
        return f"{text}, and none is ahead anywhere"
    who = next(iter(losing)) if len(losing) == 1 else "a baseline"
    return f"{text}; {who} is ahead at {_at(counts, behind)}"


def best_rival(name: str, curves: Sequence[Curve], dictionaries: Container[str]) -> str | None:
    """The baseline that leaves the least KL with few features; None where there is none."""
    rivals = [curve for curve in curves if curve.name != name and curve.name not in dictionaries]
    return min(rivals, key=lambda curve: _with_few(curve).kl.value).name if rivals else None


def _with_few(curve: Curve) -> PatchingPoint:
    """The point of the most features up to `FEW`."""
    return next(point for point in reversed(curve.points) if point.n_features <= FEW)


def _at(counts: Sequence[int], chosen: Sequence[int]) -> str:
    """Counts in few words: ranges, at most two of them, and how many more."""
    parts = ranges(counts, chosen)
    return ", ".join(parts[:2]) + (f" and {len(parts) - 2} more" if len(parts) > 2 else "")
