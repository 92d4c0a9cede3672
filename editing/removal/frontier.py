"""Capability left against damage done, one curve per method: its edit at one strength after another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from editing.interventions.compose import Scaled
from editing.removal.evaluation import GONE, Judge, Judged, Method, site_of
from editing.removal.two_class_prompts import Span
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class FrontierPoint:
    """One strength of one method."""

    strength: float
    """As a share of the method's own."""
    auroc: float
    auroc_interval: Span
    within: float
    within_interval: Span
    damage: float
    damage_interval: Span


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
            FrontierPoint(
                strength=strength,
                auroc=one.auroc,
                auroc_interval=one.intervals["auroc"],
                within=one.within,
                within_interval=one.intervals["within"],
                damage=one.damage,
                damage_interval=one.intervals["damage"],
            )
            for strength, one in zip(strengths, trials, strict=True)
        )
        return cls(method, site_of(edits), tuple(points))

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
