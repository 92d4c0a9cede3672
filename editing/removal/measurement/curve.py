"""Capability left against damage along the strength of an edit, and the damage at which a share of it is gone.

Capability left is 2 |AUROC - 0.5|: 1 where the classes are told apart, 0 where they are not, and 1 again for an edit
that turns every answer round. A share p of it is removed at the least strength at which 1 - p of the unedited model's
is left. Between two strengths that were run the AUROC and the root of the damage are taken to be straight lines in the
strength (a KL grows with the square of a small change).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from editing.interventions.compose import Scaled
from editing.removal.config import STRENGTHS
from editing.removal.measurement.evaluation import Evaluated, Evaluator, Method
from sae_core.estimate import Estimate
from sae_core.model.language_model import Intervention

SHARES = (0.5, 0.8, 0.9)
"""Of the capability, at whose removal methods are compared."""


@dataclass(frozen=True)
class CurvePoint:
    """One strength of one method."""

    strength: float
    """As a multiple of the fitted edit."""
    auroc: Estimate
    left: Estimate
    """Capability left, 2 |AUROC - 0.5|."""
    within: Estimate
    """Group-conditional AUROC (`Removal.within`)."""
    accuracy: Estimate
    gap: Estimate
    """Mean of P(right answer) - P(wrong answer)."""
    damage: Estimate
    """Nats per token."""


@dataclass(frozen=True)
class Needed:
    """The damage at which a share of the capability is removed."""

    share: float
    damage: float | None
    """Nats per token; None: the share is never reached."""
    low: float | None
    """Of the 95% interval over bootstrap resamples of prompts and text; None: it is not reached."""
    high: float | None
    reached: float
    """Of the resamples, those in which the share is reached."""

    def __str__(self) -> str:
        return _shown(self.damage)

    def interval(self) -> str:
        """`[0.0011, never]`."""
        return f"[{_shown(self.low)}, {_shown(self.high)}]"


def _shown(damage: float | None) -> str:
    return "never" if damage is None else format(damage, ".2g")


@dataclass(frozen=True)
class Curve:
    """Capability left against damage, for one method at one site, in order of strength from 0."""

    method: Method
    site: str
    points: tuple[CurvePoint, ...]
    needed: tuple[Needed, ...]
    """At 50, 80 and 90 % removed."""
    place: str = ""
    """The tokens on which an eraser was fitted; of three places the best on the prompts for choosing."""

    def at(self, share: float) -> Needed:
        """What it takes to remove that share; raises `KeyError` for one that was not asked for."""
        return {needed.share: needed for needed in self.needed}[share]


@dataclass(frozen=True, eq=False)
class MeasuredCurve:
    """A curve, and the damages needed in every bootstrap resample, by share; infinite where it is not reached."""

    curve: Curve
    resamples: Mapping[float, Float[np.ndarray, "resamples"]]

    @classmethod
    def of(
        cls,
        evaluator: Evaluator,
        edits: Sequence[Intervention],
        known: Mapping[float, Evaluated],
        strengths: Sequence[float] = STRENGTHS,
        *,
        place: str = "",
    ) -> "MeasuredCurve":
        """The curve of edits that are scaled together, up to where every share is removed in every resample.

        `known` holds the unedited model's figures at strength 0, the method's at its own, and what else is known.
        """
        evaluated = dict(known)
        method = evaluated[max(evaluated)].removal.method
        for strength in strengths:
            if strength not in evaluated:
                scaled = [Scaled(edit, strength) for edit in edits]
                evaluated[strength] = evaluator.capability_and_damage(scaled, method)
            if _all_removed(evaluated[0.0], evaluated[strength]):
                break
        return cls.through(evaluated, place)

    @classmethod
    def through(cls, evaluated: Mapping[float, Evaluated], place: str = "") -> "MeasuredCurve":
        """The curve through these evaluations, by strength; the largest tells the method and the site."""
        order = sorted(evaluated)
        rows = [evaluated[strength] for strength in order]
        areas = np.array([[row.removal.auroc.value, *row.auroc_resamples] for row in rows])
        damages = np.array([[row.removal.damage.value, *row.damage.resamples] for row in rows])
        n = min(areas.shape[1], damages.shape[1])  # resamples of prompts may be fewer than those of text
        needed, resamples = [], {}
        for share in SHARES:
            value, *rest = damage_needed(np.array(order), areas[:, :n], damages[:, :n], share)
            resamples[share] = np.array(rest)
            needed.append(_needed(share, value, resamples[share]))
        points = tuple(_point(s, row) for s, row in zip(order, rows, strict=True))
        last = rows[-1].removal
        return cls(Curve(last.method, last.site, points, tuple(needed), place), resamples)


def strength_needed(
    strengths: Float[np.ndarray, "points"], aurocs: Float[np.ndarray, "points n"], share: float
) -> Float[np.ndarray, "n"]:
    """The least strength at which `share` is removed, of each column; infinite where none of those run does.

    `strengths` ascend from 0, the unedited model. An edit may pass through 0.5 between two strengths: what counts is
    the distance from 0.5 on the side on which the unedited model lies.
    """
    side = np.sign(aurocs[0] - 0.5)
    distance = side * (aurocs - 0.5) - (1 - share) * np.abs(aurocs[0] - 0.5)
    needed = np.full(aurocs.shape[1], np.inf)
    for i in range(len(strengths) - 1, 0, -1):  # the least is written last
        before, after = distance[i - 1], distance[i]
        passes = (before > 0) & (after <= 0)
        fraction = before / np.where(passes, before - after, 1.0)
        needed = np.where(passes, strengths[i - 1] + fraction * (strengths[i] - strengths[i - 1]), needed)
    return needed


def damage_needed(
    strengths: Float[np.ndarray, "points"],
    aurocs: Float[np.ndarray, "points n"],
    damages: Float[np.ndarray, "points n"],
    share: float,
) -> Float[np.ndarray, "n"]:
    """The damage at that strength, of each column; infinite where the share is not reached."""
    needed = strength_needed(strengths, aurocs, share)
    roots = np.sqrt(np.maximum(damages, 0.0))
    at = [
        np.interp(s, strengths, root) ** 2 if np.isfinite(s) else np.inf
        for s, root in zip(needed, roots.T, strict=True)
    ]
    return np.array(at)


def _all_removed(unedited: Evaluated, edited: Evaluated) -> bool:
    """Whether the largest share is removed in every resample: what stronger edits do changes no damage needed."""
    before, after = ((row.removal.auroc.value, *row.auroc_resamples) for row in (unedited, edited))
    strengths, areas = np.array([0.0, 1.0]), np.array([before, after])
    return bool(np.isfinite(strength_needed(strengths, areas, max(SHARES))).all())


def _needed(share: float, value: float, resamples: Float[np.ndarray, "resamples"]) -> Needed:
    # the order statistics themselves: between a damage and never there is nothing to interpolate
    low, high = np.quantile(resamples, [0.025, 0.975], method="inverted_cdf") if len(resamples) else (value, value)
    reached = float(np.isfinite(resamples).mean()) if len(resamples) else 0.0
    return Needed(share, _reached(value), _reached(low), _reached(high), reached)


def _reached(damage: float) -> float | None:
    return float(damage) if np.isfinite(damage) else None


def _point(strength: float, row: Evaluated) -> CurvePoint:
    area = row.removal.auroc
    return CurvePoint(
        strength, area, left_of(area), row.removal.within, row.removal.accuracy, row.removal.gap, row.removal.damage
    )


def left_of(auroc: Estimate) -> Estimate:
    """Capability left, with the interval of what the AUROC's interval allows: from 0 where that holds 0.5."""
    ends = [2 * abs(end - 0.5) for end in (auroc.low, auroc.high)]
    least = 0.0 if auroc.low <= 0.5 <= auroc.high else min(ends)
    return Estimate(2 * abs(auroc.value - 0.5), least, max(ends))
