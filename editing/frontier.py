"""Capability left against damage done, one curve per method: its edit at one strength after another."""

from collections.abc import Sequence
from dataclasses import dataclass

from editing.judging import GONE, Interval, Judge
from editing.scaled import Scaled
from sae_core.models import Intervention

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class FrontierPoint:
    """One strength of one method."""

    strength: float
    """As a share of the method's own."""
    auroc: float
    auroc_interval: Interval
    within: float
    damage: float
    damage_interval: Interval


@dataclass(frozen=True)
class Frontier:
    """One method at one site, from no edit on."""

    method: str
    site: str
    points: tuple[FrontierPoint, ...]

    def damage_when_gone(self) -> float | None:
        """Nats per token at the least strength that removes the capability; None if none of those tried does.

        Between two strengths AUROC and damage are taken to run straight.
        """
        for before, after in zip((None, *self.points), self.points, strict=False):
            distance = abs(after.auroc - 0.5) - GONE
            if before is None:
                if distance <= 0:
                    return after.damage
                continue
            above, below = before.auroc - 0.5 - GONE, after.auroc - 0.5 - GONE
            if before.auroc < 0.5:  # a task on which the model itself is wrong
                above, below = 0.5 - before.auroc - GONE, 0.5 - after.auroc - GONE
            if below <= 0:  # from outside the margin to within or beyond it
                return before.damage + (after.damage - before.damage) * above / (above - below)
        return None


def frontier(
    judge: Judge, method: str, edits: Sequence[Intervention], strengths: Sequence[float] = STRENGTHS
) -> Frontier:
    """The curve of a method whose edits are changed together."""
    points = []
    for strength in strengths:
        removal, _ = judge.brief([Scaled(edit, strength) for edit in edits], method)
        points.append(
            FrontierPoint(
                strength,
                removal.auroc,
                removal.intervals["auroc"],
                removal.within,
                removal.damage,
                removal.intervals["damage"],
            )
        )
    return Frontier(method, removal.site, tuple(points))
