"""Capability left against damage done, one curve per method: its edit at one strength after another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from editing.interventions.compose import Scaled
from editing.removal.evaluation import GONE, Judge, Judged, Method, site_of
from sae_core.errors import UserError
from sae_core.estimate import Estimate
from sae_core.model.language_model import Intervention

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class FrontierPoint:
    """One strength of one method."""

    strength: float
    """As a share of the method's own."""
    auroc: Estimate
    within: Estimate
    """Group-conditional AUROC (`Removal.within`)."""
    damage: Estimate
    """Nats per token."""


@dataclass(frozen=True)
class Frontier:
    """One method at one site, from no edit on."""

    method: Method
    site: str
    points: tuple[FrontierPoint, ...]

    @classmethod
    def of(
        cls,
        judge: Judge,
        method: Method,
        edits: Sequence[Intervention],
        strengths: Sequence[float] = STRENGTHS,
        known: Mapping[float, Judged] | None = None,
    ) -> "Frontier":
        """The curve of a method whose edits are changed together; raises `UserError` without a single strength.

        `known` are strengths at which it has been judged already.
        """
        if not strengths:
            raise UserError("a frontier needs at least one strength; got none")
        known = known or {}
        trials = [
            (known.get(strength) or judge.brief([Scaled(edit, strength) for edit in edits], method))[0]
            for strength in strengths
        ]
        points = (
            FrontierPoint(strength, removal.auroc, removal.within, removal.damage)
            for strength, removal in zip(strengths, trials, strict=True)
        )
        return cls(method, site_of(edits), tuple(points))

    def damage_when_gone(self) -> float | None:
        """Nats per token at the least strength that removes the capability; None if none of those tried does.

        Between two strengths AUROC and damage are taken to run straight.
        """
        first = self.points[0]
        if abs(first.auroc.value - 0.5) <= GONE:
            return first.damage.value
        for before, after in pairwise(self.points):
            # the side of 0.5 on which `before` lies; it is the lower one where the model itself does the task wrongly
            side = 1 if before.auroc.value >= 0.5 else -1
            above, below = (side * (point.auroc.value - 0.5) - GONE for point in (before, after))
            if below <= 0:  # from outside the margin to within or beyond it
                slope = (after.damage.value - before.damage.value) / (above - below)
                return before.damage.value + slope * above
        return None
