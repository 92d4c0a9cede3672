"""Methods compared: capability left against damage at every strength, and features beside LEACE site by site."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from editing.interventions.compose import Scaled
from editing.metrics import estimate_from, resampled
from editing.removal.config import STRENGTHS
from editing.removal.evaluation import EVERYWHERE, GONE, Evaluated, Evaluator, Method
from sae_core.errors import UserError
from sae_core.estimate import Estimate
from sae_core.model.language_model import Intervention


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
    """Capability left against damage, for one method at one site, in order of strength."""

    method: Method
    site: str
    points: tuple[FrontierPoint, ...]

    @classmethod
    def of(
        cls,
        evaluator: Evaluator,
        method: Method,
        edits: Sequence[Intervention],
        strengths: Sequence[float] = STRENGTHS,
        known: Mapping[float, Evaluated] | None = None,
    ) -> "Frontier":
        """The curve of a method whose edits are scaled together; raises `UserError` without a single strength.

        `known` holds what was evaluated already, by strength.
        """
        if not strengths:
            raise UserError("a frontier needs at least one strength; got none")
        evaluated = dict(known or {})
        for strength in strengths:
            if strength not in evaluated:
                scaled = [Scaled(edit, strength) for edit in edits]
                evaluated[strength] = evaluator.capability_and_damage(scaled, method)
        removals = [(strength, evaluated[strength].removal) for strength in strengths]
        site = str(edits[0].site) if len(edits) == 1 else EVERYWHERE
        return cls(method, site, tuple(FrontierPoint(s, r.auroc, r.within, r.damage) for s, r in removals))

    def damage_when_gone(self) -> float | None:
        """Nats per token at the least strength that removes the capability; None if none of those run does.

        Between two strengths AUROC and damage are interpolated linearly.
        """
        first = self.points[0]
        if abs(first.auroc.value - 0.5) <= GONE:
            return first.damage.value
        for before, after in pairwise(self.points):
            # distances from the margin, on the side of 0.5 on which `before` lies: an edit may pass through it
            side = 1 if before.auroc.value >= 0.5 else -1
            outside, inside = (side * (point.auroc.value - 0.5) - GONE for point in (before, after))
            if inside <= 0:
                share = outside / (outside - inside)
                return before.damage.value + share * (after.damage.value - before.damage.value)
        return None


@dataclass(frozen=True)
class LeaceComparison:
    """Features beside LEACE at one site (or at all of them)."""

    site: str
    features_gone: bool
    leace_gone: bool
    saved: Estimate
    """Damage of LEACE minus damage of the features, nats per token; the same contexts are resampled for both."""

    @classmethod
    def of(cls, features: Evaluated, leace: Evaluated, seed: int) -> "LeaceComparison":
        """The comparison of two evaluations on the same text."""
        difference = torch.tensor(leace.damage.kl_sums, dtype=torch.float64) - torch.tensor(features.damage.kl_sums)
        counts = torch.tensor(features.damage.counts, dtype=torch.float64)
        weights = resampled(torch.arange(len(counts)), seed)
        resamples = (weights @ difference) / (weights @ counts).clamp_min(1e-12)
        saved = estimate_from(leace.removal.damage.value - features.removal.damage.value, resamples)
        return cls(features.removal.site, features.removal.gone, leace.removal.gone, saved)

    @property
    def better(self) -> bool:
        """Whether the features remove the capability and do less damage."""
        return self.features_gone and self.saved.value > 0

    @property
    def clearly(self) -> bool:
        """Whether they do so in the whole interval."""
        return self.features_gone and self.saved.low > 0


def verdict(comparisons: Sequence[LeaceComparison]) -> str:
    """Whether features remove the capability with less damage than LEACE at the same site, in sentences."""
    single = [comparison for comparison in comparisons if comparison.site != EVERYWHERE]
    if not single:
        return "Features and LEACE were not compared"
    n, better = len(single), [comparison for comparison in single if comparison.better]
    answer = "Yes" if len(better) == n else "Partly" if better else "No"
    where = f" ({', '.join(comparison.site for comparison in better)})" if better else ""
    beyond = f", beyond the 95% interval at {sum(comparison.clearly for comparison in better)}" if better else ""
    sentences = [
        f"{answer}: the features remove the capability with less damage than LEACE at {len(better)} of {n} sites"
        f"{where}{beyond}",
        f"Features, kept within the budget, remove it at {sum(c.features_gone for c in single)} of {n} sites, LEACE, "
        f"which has no budget, at {sum(c.leace_gone for c in single)}",
    ]
    for together in (comparison for comparison in comparisons if comparison.site == EVERYWHERE):
        outcome = {
            (True, True): "both remove it",
            (True, False): "the features remove it and LEACE does not",
            (False, True): "LEACE removes it and the features do not",
            (False, False): "neither removes it",
        }[together.features_gone, together.leace_gone]
        less = "less" if together.saved.value > 0 else "more"
        sentences.append(
            f"Applied at all layers at once, {outcome}; the features do {abs(together.saved.value):.4f} nats per "
            f"token {less} damage than LEACE"
        )
    return ". ".join(sentences)
