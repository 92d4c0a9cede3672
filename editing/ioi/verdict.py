"""What a curve and its comparisons with all baselines say, in one sentence."""

from collections.abc import Collection, Sequence

from editing.ioi.curve import Curve, PatchingPoint
from editing.ioi.curve_comparison import CurveComparison, ranges

FEW = 16
"""Features at which methods are named with their KL."""


def verdict(name: str, curves: Sequence[Curve], comparisons: Sequence[CurveComparison], sets: Collection[str]) -> str:
    """One sentence of under 40 words: KL with few features beside the best baseline, and who is ahead where.

    Ahead means that the 95% interval of the paired difference leaves zero out, against every baseline, or for one.
    `sets` are the names of curves that are no baselines.
    """
    points = {curve.name: _with_few(curve) for curve in curves}
    patched, nothing = points[name], next(curve for curve in curves if curve.name == name).points[0]
    text = f"with {patched.n_features} features {name} leaves {patched.kl.value:.2f} of {nothing.kl.value:.2f} nats"
    rival = best_rival(curves, sets)
    if rival is None or not comparisons:
        return text
    # baselines have as many features as they have: a dictionary can beat them all only at counts that all have
    counts = sorted({count for each in comparisons for count in each.counts})
    ahead = [count for count in counts if all(count in each.better for each in comparisons)]
    losing = {each.baseline: set(each.worse) for each in comparisons if each.worse}
    behind = [count for count in counts if any(count in worse for worse in losing.values())]
    text += f", the best baseline ({rival}) {points[rival].kl.value:.2f}; "
    text += f"it beats every baseline at {_at(counts, ahead)}" if ahead else "at no count does it beat every baseline"
    if not behind:
        return f"{text}; no baseline is ahead"
    who = next(iter(losing)) if len(losing) == 1 else "a baseline"
    return f"{text}; it is behind {who} at {_at(counts, behind)}"


def best_rival(curves: Sequence[Curve], sets: Collection[str]) -> str | None:
    """The baseline, a curve of none of the `sets`, that leaves the least KL with few features; None without one."""
    rivals = [curve for curve in curves if curve.name not in sets]
    return min(rivals, key=lambda curve: _with_few(curve).kl.value).name if rivals else None


def _with_few(curve: Curve) -> PatchingPoint:
    """The point of the most features up to `FEW`."""
    return next(point for point in reversed(curve.points) if point.n_features <= FEW)


def _at(counts: Sequence[int], chosen: Sequence[int]) -> str:
    """Counts in few words: ranges, at most two of them, and how many more."""
    parts = ranges(counts, chosen)
    return ", ".join(parts[:2]) + (f" and {len(parts) - 2} more" if len(parts) > 2 else "")
