"""How good a circuit is: faithfulness, completeness and minimality on prompts that discovery has not seen.

With m(.) the mean of the target over prompts, M the whole model, C the circuit and 0 everything ablated
(all latents and all error terms at the covered sites):

    faithfulness  (m(C)   - m(0)) / (m(M) - m(0))
    completeness  (m(M\\C) - m(0)) / (m(M) - m(0))       near 0 if nothing was left out
    minimality    (m(C) - m(C \\ {v})) / (m(M) - m(0))   for each member v

(Marks et al. 2024; Wang et al. 2022 for the names). Ratios of means, not means of ratios. A circuit is
scored with error terms ablated, and as one that holds them; M\\C has what C has not, error terms included.
Beside it stand the ceiling, all latents kept with errors ablated, above which a circuit of latents is not
expected to come, and what the errors carry alone. Cost: about 5 runs plus 2 shorter ones per member.
"""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.scoring.circuit_runs import CircuitRuns, Errors, Members, features_in
from editing.metrics import estimate_from, resampled
from sae_core.errors import UserError
from sae_core.estimate import Estimate
from sae_core.sites import FeatureId

SAME = 1e-5
"""m(M) and m(0) closer than this share of the target's size are one number to float32, and no scale."""


class Scale:
    """The scale m(0) = 0, m(M) = 1 on which circuits are measured, and the resamples of the prompts.

    Estimates carry 95% bootstrap intervals over prompts. `groups` name what prompts share (a template): groups are
    resampled, then prompts within; by default every prompt is a group of its own. Raises `UserError` where
    m(M) = m(0): nothing depends on what can be ablated.
    """

    def __init__(self, runs: CircuitRuns, *, seed: int = 0, groups: Sequence[Hashable] | Tensor | None = None):
        self.runs = runs
        self.weights = resampled(range(len(runs)) if groups is None else groups, seed)
        self.whole = runs.whole.double().cpu()
        self.nothing = runs.values([{}], Errors.ABLATED)[0]
        size = torch.stack([self.whole, self.nothing]).abs().mean().item()
        if abs(self.m_whole - self.m_nothing) <= SAME * size:
            raise UserError(
                f"{runs.target.node} is {self.m_whole:.4g} on these prompts with and without everything below it "
                f"({runs.ablation.name}), so no circuit can be scored; give other prompts or another ablation"
            )

    @property
    def m_whole(self) -> float:
        """m(M), in units of the target."""
        return self.whole.mean().item()

    @property
    def m_nothing(self) -> float:
        """m(0), in units of the target."""
        return self.nothing.mean().item()

    def share(self, values: Float[Tensor, "prompts"]) -> Estimate:
        """(m - m(0)) / (m(M) - m(0)), m the mean of a target's values on the prompts."""
        return self.ratio(values - self.nothing, self.whole - self.nothing)

    def drop(self, values: Float[Tensor, "prompts"], without: Float[Tensor, "prompts"]) -> Estimate:
        """(m - m without) / (m(M) - m(0))."""
        return self.ratio(values - without, self.whole - self.nothing)

    def ratio(self, above: Float[Tensor, "prompts"], below: Float[Tensor, "prompts"]) -> Estimate:
        """Mean of `above` over mean of `below`, both resampled together; NaN where the latter is zero."""
        drawn = (self.weights @ above) / (self.weights @ below)
        value, finite = (above.mean() / below.mean()).item(), drawn[drawn.isfinite()]
        return estimate_from(value, finite) if len(finite) else Estimate(value)


@dataclass(frozen=True)
class ErrorTermScores:
    """A circuit's three numbers with error terms ablated, or with error terms in it."""

    faithfulness: Estimate
    completeness: Estimate
    """Faithfulness of the complement, which holds the error terms where the circuit does not."""
    drops: Mapping[FeatureId, Estimate]
    """Minimality: the faithfulness lost with each member alone."""

    @property
    def mean_drop(self) -> float:
        """Mean over members of what is lost with one; NaN for an empty circuit."""
        return sum(drop.value for drop in self.drops.values()) / len(self.drops) if self.drops else math.nan

    @property
    def least_missed(self) -> FeatureId | None:
        """The member with the smallest drop; one below zero reduces faithfulness. None for an empty circuit."""
        return min(self.drops, key=lambda member: self.drops[member].value, default=None)

    def minimality(self) -> str:
        """Minimality in words; the circuit must have members."""
        assert self.least_missed is not None
        least = self.drops[self.least_missed]
        return f"mean drop {self.mean_drop:.4f} over members, least {least} ({self.least_missed})"


@dataclass(frozen=True)
class CircuitScore:
    """A circuit on held-out prompts, under one ablation of what is outside it."""

    target: str
    ablation: str
    n_prompts: int
    members: tuple[FeatureId, ...]
    covered: tuple[str, ...]
    """The sites at which everything outside the circuit is ablated."""
    m_whole: float
    """m(M), in units of the target."""
    m_nothing: float
    """m(0), in units of the target."""
    ways: Mapping[Errors, ErrorTermScores]
    ceiling: Estimate
    """All latents kept, error terms ablated."""
    errors_alone: Estimate
    """All latents ablated, error terms kept."""
    of_ceiling: Estimate
    """Faithfulness with errors ablated over the ceiling, (m(C) - m(0)) / (m(all latents) - m(0))."""

    def lines(self) -> list[str]:
        """The score in words."""
        ablated, kept = self.ways[Errors.ABLATED], self.ways[Errors.KEPT]
        minimal = {errors: way for errors, way in self.ways.items() if way.drops}
        return [
            f"{len(self.members)} nodes on {self.n_prompts} held-out prompts; outside the circuit: {self.ablation}; "
            f"{self.target} is {self.m_whole:.3f} in the model and {self.m_nothing:.3f} with everything ablated",
            f"faithfulness {ablated.faithfulness} with errors ablated, {kept.faithfulness} with errors kept; ceiling "
            f"(all latents, errors ablated) {self.ceiling}: {self.of_ceiling} of it; errors alone {self.errors_alone}",
            f"completeness {ablated.completeness} with errors ablated, {kept.completeness} with errors kept",
            *(f"minimality {way.minimality()}, errors {errors}" for errors, way in minimal.items()),
        ]


def score_circuit(scale: Scale, members: Members, *, minimal: Collection[Errors] = tuple(Errors)) -> CircuitScore:
    """The score of a circuit on the prompts of `scale`; each member is left out in turn only in the ways `minimal`.

    Raises `UserError` for members that the covered dictionaries do not have.
    """
    runs, features = scale.runs, features_in(members)
    complement = runs.without(members)
    alone = {errors: runs.values([members], errors)[0] for errors in Errors}
    ways = {}
    for errors in Errors:
        rest = runs.values([complement], errors.other)[0]
        each = zip(features, runs.without_each(members, errors), strict=True) if errors in minimal else ()
        drops = {f: scale.drop(alone[errors], values) for f, values in each}
        ways[errors] = ErrorTermScores(scale.share(alone[errors]), scale.share(rest), drops)
    latents = runs.values([runs.everything()], Errors.ABLATED)[0]
    return CircuitScore(
        target=str(runs.target.node),
        ablation=runs.ablation.name,
        n_prompts=len(runs),
        members=tuple(features),
        covered=tuple(map(str, runs.sites)),
        m_whole=scale.m_whole,
        m_nothing=scale.m_nothing,
        ways=ways,
        ceiling=scale.share(latents),
        errors_alone=scale.share(runs.values([{}], Errors.KEPT)[0]),
        of_ceiling=scale.ratio(alone[Errors.ABLATED] - scale.nothing, latents - scale.nothing),
    )
