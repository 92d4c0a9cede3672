"""The numbers of a study of explanations: a row for each explanation, means over features, and fragments to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

import torch

from sae_core.estimate import Estimate
from sae_core.sites import FeatureId, Site
from subrank.studies.explaining.claims import WHOLE, Claim
from subrank.studies.relations.splitting_step import mean_estimate
from subrank.studies.simulating.fragments import RANDOM, TOP
from subrank.studies.simulating.simulation import Scores, scores

RULES = "rules"
NUMBERS = {
    "top_and_random": "top and random",
    "top": "top",
    "random": "random",
    "all": "all",
    "precision": "precision",
    "recall": "recall",
    "detection": "detection",
    "fuzzing": "fuzzing",
}
"""The scores, and the names they are shown under."""


@dataclass(frozen=True)
class Explained:
    """An explanation of a feature, with its scores."""

    method: str
    """Whose feature it is; and whose the explanation, where it is not its own."""
    feature: FeatureId
    text: str
    """Empty where there was no answer."""
    scores: Scores


@dataclass(frozen=True)
class Shown:
    """A fragment with true and simulated activations."""

    feature: FeatureId
    text: str
    group: str
    correlation: float
    """Of the feature, on top and random fragments."""
    tokens: tuple[str, ...]
    true: tuple[float, ...]
    simulated: tuple[float, ...]
    """NaN where there was no answer."""
    most: tuple[float, float]
    """The largest true and simulated activation of the feature's fragments."""


@dataclass(frozen=True)
class Tally:
    """What was left out, and what was asked."""

    silent: int
    """Directions that were drawn, but are silent on the held-out fragments."""
    asked: int
    """Questions that were asked now."""
    known: int
    """Questions that had been answered before."""
    problems: tuple[str, ...] = ()
    """Of the first few without an answer, why."""


def rows_of(claims: Sequence[Claim]) -> tuple[Explained, ...]:
    """A row for each claim."""
    return tuple(
        Explained(claim.method, claim.subject.feature, claim.text, scores(claim.subject.trial, claim.predictions))
        for claim in claims
    )


def methods_of(rows: Sequence[Explained]) -> list[str]:
    """The methods, in order."""
    return list(dict.fromkeys(row.method for row in rows))


def main_methods(rows: Sequence[Explained]) -> list[str]:
    """Those that explain in a few words."""
    return [method for method in methods_of(rows) if not method.endswith(WHOLE.format(""))]


def mean_of(rows: Sequence[Explained], number: str, seed: int, *, method: str, site: Site | None = None) -> Estimate:
    """The mean of a score over the features of a method, at one site or all, resampled over features; NaN for none."""
    chosen = [row for row in rows if row.method == method and site in (None, row.feature.site)]
    values = [getattr(row.scores, number) for row in chosen]
    return mean_estimate(torch.tensor([value for value in values if not isnan(value)]), seed)


def shown_of(claims: Sequence[Claim], names: Sequence[str]) -> tuple[Shown, ...]:
    """Two fragments each of the best, the middle and the worst explanation of the first method."""
    ranked = sorted(
        (
            (scores(claim.subject.trial, claim.predictions).top_and_random, number)
            for number, claim in enumerate(claims)
            if claim.method == claims[0].method
        ),
        reverse=True,
    )
    places = dict.fromkeys((0, len(ranked) // 2, len(ranked) - 1))
    return tuple(
        _shown(claims[ranked[place][1]], group, ranked[place][0], names)
        for place in places
        for group in (TOP, RANDOM)
        if group in claims[ranked[place][1]].subject.trial.simulated.groups
    )


def _shown(claim: Claim, group: str, correlation: float, names: Sequence[str]) -> Shown:
    examples, simulated = claim.subject.trial.simulated, claim.predictions.activation
    row = examples.groups.index(group)
    content = examples.content[row]
    return Shown(
        claim.subject.feature,
        claim.text,
        group,
        correlation,
        tuple(names[int(token)] for token in examples.tokens[row, content]),
        tuple(examples.activation[row, content].tolist()),
        tuple(simulated[row, content].tolist()),
        (examples.activation.max().item(), simulated.nan_to_num().max().item()),
    )
