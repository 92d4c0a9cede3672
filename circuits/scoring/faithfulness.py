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
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.scoring.circuit_runs import CircuitRuns, Errors, Members, features_in
from editing.metrics import interval, resampled
from sae_core.errors import UserError
from sae_core.evaluation.reconstruction import finite
from sae_core.sites import FeatureId

SAME = 1e-5
"""m(M) and m(0) closer than this share of the target's size are one number to float32, and no scale."""


@dataclass(frozen=True)
class Share:
    """A number on the scale m(0) = 0, m(M) = 1, with its 95% bootstrap interval over prompts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> list[float | None]:
        """Value, lower and upper end; null where one is not finite."""
        return [finite(self.value), finite(self.low), finite(self.high)]

    @classmethod
    def from_json(cls, value: Sequence[float | None]) -> "Share":
        return cls(*(math.nan if number is None else number for number in value))


class Scale:
    """The two ends on which circuits are measured, m(0) and m(M), and the resamples of the prompts.

    `groups` name what prompts share (a template): groups are resampled, then prompts within; by default
    every prompt is on its own. Raises `UserError` where m(M) = m(0): nothing depends on what can be ablated.
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

    def share(self, values: Float[Tensor, "prompts"]) -> Share:
        """(m - m(0)) / (m(M) - m(0)) of a target's values on the prompts."""
        return self.ratio(values - self.nothing, self.whole - self.nothing)

    def drop(self, values: Float[Tensor, "prompts"], without: Float[Tensor, "prompts"]) -> Share:
        """(m - m without) / (m(M) - m(0))."""
        return self.ratio(values - without, self.whole - self.nothing)

    def ratio(self, above: Float[Tensor, "prompts"], below: Float[Tensor, "prompts"]) -> Share:
        """Mean of `above` over mean of `below`, both resampled together; NaN where the latter is zero."""
        drawn = (self.weights @ above) / (self.weights @ below)
        ends = interval(drawn[drawn.isfinite()]) if drawn.isfinite().any() else torch.full((2,), math.nan)
        return Share((above.mean() / below.mean()).item(), *ends.tolist())


@dataclass(frozen=True)
class Drop:
    """What the circuit loses with one member, on the scale."""

    member: FeatureId
    drop: Share


@dataclass(frozen=True)
class Way:
    """A circuit's three numbers with error terms ablated, or with error terms in it."""

    faithfulness: Share
    completeness: Share
    """Faithfulness of the complement, which holds the error terms where the circuit does not."""
    drops: tuple[Drop, ...]
    """Minimality, member by member."""

    @property
    def mean_drop(self) -> float:
        """Mean over members of what is lost with one; NaN for an empty circuit."""
        return sum(one.drop.value for one in self.drops) / len(self.drops) if self.drops else math.nan

    @property
    def worst(self) -> Drop | None:
        """The member that is missed least, if there are members; one below zero stands in the circuit's way."""
        return min(self.drops, key=lambda one: one.drop.value, default=None)

    def to_json(self) -> dict[str, Any]:
        """All numbers, with the summary of minimality; `from_json` is the inverse."""
        return {
            "faithfulness": self.faithfulness.to_json(),
            "completeness": self.completeness.to_json(),
            "minimality_mean": finite(self.mean_drop),
            "minimality_worst": [str(self.worst.member), *self.worst.drop.to_json()] if self.worst else None,
            "drops": {str(one.member): one.drop.to_json() for one in self.drops},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Way":
        drops = tuple(Drop(FeatureId.parse(name), Share.from_json(drop)) for name, drop in value["drops"].items())
        return cls(Share.from_json(value["faithfulness"]), Share.from_json(value["completeness"]), drops)


@dataclass(frozen=True)
class Score:
    """A circuit on held-out prompts, under one ablation of what is outside it."""

    target: str
    ablation: str
    n_prompts: int
    members: tuple[FeatureId, ...]
    covered: tuple[str, ...]
    """The sites at which everything outside the circuit is ablated."""
    m_whole: float
    m_nothing: float
    ways: Mapping[Errors, Way]
    ceiling: Share
    """All latents kept, error terms ablated."""
    errors_alone: Share
    """All latents ablated, error terms kept."""
    of_ceiling: Share
    """Faithfulness with errors ablated over the ceiling, (m(C) - m(0)) / (m(all latents) - m(0))."""

    def lines(self) -> list[str]:
        """The score in words."""
        ablated, kept = self.ways[Errors.ABLATED], self.ways[Errors.KEPT]
        return [
            f"{len(self.members)} nodes on {self.n_prompts} held-out prompts; outside the circuit: {self.ablation}; "
            f"{self.target} is {self.m_whole:.3f} in the model and {self.m_nothing:.3f} with everything ablated",
            f"faithfulness {ablated.faithfulness} with errors ablated, {kept.faithfulness} with errors kept; ceiling "
            f"(all latents, errors ablated) {self.ceiling}: {self.of_ceiling} of it; errors alone {self.errors_alone}",
            f"completeness {ablated.completeness} with errors ablated, {kept.completeness} with errors kept",
            *(f"minimality {_minimality(self.ways[errors])}, errors {errors}" for errors in Errors if self.members),
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the inverse."""
        return {
            "target": self.target,
            "ablation": self.ablation,
            "n_prompts": self.n_prompts,
            "members": [str(feature) for feature in self.members],
            "covered": list(self.covered),
            "m_whole": self.m_whole,
            "m_nothing": self.m_nothing,
            "ways": {str(errors): way.to_json() for errors, way in self.ways.items()},
            "ceiling": self.ceiling.to_json(),
            "errors_alone": self.errors_alone.to_json(),
            "of_ceiling": self.of_ceiling.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Score":
        shares = {name: Share.from_json(value[name]) for name in ("ceiling", "errors_alone", "of_ceiling")}
        plain = {name: value[name] for name in ("target", "ablation", "n_prompts", "m_whole", "m_nothing")}
        return cls(
            **plain,
            **shares,
            members=tuple(map(FeatureId.parse, value["members"])),
            covered=tuple(value["covered"]),
            ways={Errors(name): Way.from_json(way) for name, way in value["ways"].items()},
        )


def _minimality(way: Way) -> str:
    assert way.worst is not None
    return f"mean drop {way.mean_drop:.4f} over members, least {way.worst.drop} ({way.worst.member})"


def score(scale: Scale, members: Members) -> Score:
    """The score of a circuit on the prompts of `scale`.

    Raises `UserError` for members that the covered dictionaries do not have.
    """
    runs, rest = scale.runs, scale.runs.without(members)
    features, ways = features_in(members), {}
    for errors in Errors:
        own = runs.values([members], errors)[0]
        complement = runs.values([rest], errors.other)[0]
        each = runs.without_each(members, errors)
        drops = tuple(Drop(f, scale.drop(own, less)) for f, less in zip(features, each, strict=True))
        ways[errors] = Way(scale.share(own), scale.share(complement), drops)
        if errors is Errors.ABLATED:
            alone = own
    latents = runs.values([runs.everything()], Errors.ABLATED)[0]
    return Score(
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
        of_ceiling=scale.ratio(alone - scale.nothing, latents - scale.nothing),
    )
