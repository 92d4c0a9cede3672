"""What an explanation is worth: activations simulated from it alone, and texts and tokens told apart by it.

    simulation   Pearson's correlation of simulated and true activation over the tokens of all fragments, concatenated
    detection    balanced accuracy of "the feature is active in this fragment", against fragments in which it is silent
    fuzzing      balanced accuracy of "these are the tokens on which it is active" in fragments in which it is active:
                 once the tokens are marked that reach `MARKED` of its largest activation, once as many others

(Bills et al. 2023; Paulo et al. 2024.) Either a rule simulates itself, or a language model reads the explanation; the
same scores are made of both. Where nothing varies, a correlation is 0.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.features.explanations import Explanation, Score, score
from subrank.studies.simulating.fragments import ANY, GROUPS, RANDOM, SILENT, TOP, Examples

MARKED = 0.3
NOTHING = Score(0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Trial:
    """The examples on which one explanation is scored, and the tokens marked in them."""

    examples: Examples
    marked: Bool[Tensor, "texts pos"]
    """Of each active fragment the tokens on which the feature is active; then, of each again, others."""

    @property
    def simulated(self) -> Examples:
        """The fragments whose tokens are simulated."""
        return self.examples.of(*GROUPS)

    @property
    def detected(self) -> Examples:
        """The fragments that are told apart: active ones, and silent ones."""
        return self.examples.of(TOP, RANDOM, SILENT)

    @property
    def fuzzed(self) -> Examples:
        """The fragments that `marked` is of, twice."""
        return self.examples.of(TOP, RANDOM, TOP, RANDOM)


def trial(examples: Examples, generator: torch.Generator) -> Trial:
    """The trial of an explanation on these examples, of which some are active."""
    active = examples.of(TOP, RANDOM)
    peaks = active.activation.max(1, keepdim=True).values
    right = active.activation >= torch.minimum(peaks, MARKED * peaks.max())
    n_wrong = min(math.ceil(right.sum(1).float().mean().item()), right.shape[1])
    eligible = ~right & active.content
    drawn = torch.rand(right.shape, generator=generator).masked_fill(~eligible, -1).topk(n_wrong).indices
    wrong = torch.zeros_like(right).scatter(1, drawn, torch.ones_like(drawn, dtype=torch.bool)) & eligible
    return Trial(examples, torch.cat([right, wrong]))


@dataclass(frozen=True, eq=False)
class Predictions:
    """What was predicted in a trial; NaN where there is no answer."""

    activation: Float[Tensor, "examples pos"]
    detection: Float[Tensor, "texts"]
    """How likely a fragment holds the feature, from 0 to 1."""
    fuzzing: Float[Tensor, "marks"]
    """How likely the marked tokens are the right ones."""
    silent: float = 0.0
    """Up to what is predicted a token counts as expected to be silent."""


@dataclass(frozen=True)
class Scores:
    """The scores of an explanation."""

    top: float
    """Correlation over the fragments with the highest activations."""
    random: float
    """Over random active fragments."""
    top_and_random: float
    """Over both, as the source's figure has it."""
    all: float
    """Over these and fragments drawn from the whole text: false alarms count here."""
    precision: float
    """Of the tokens of all these fragments on which it is expected to be active, the share on which it is."""
    recall: float
    """Of those on which it is active, the share on which that is expected."""
    detection: float
    """NaN where no fragment is silent; 0.5 where there is no answer."""
    fuzzing: float
    constant: bool
    """Whether `top_and_random` is 0 because what was simulated, or the activation, does not vary."""
    unanswered: float
    """Share of the predictions for which there was no answer; they are left out."""


def scores(trial: Trial, predictions: Predictions) -> Scores:
    """The scores of predictions; correlations are 0 where none was made, NaN where there is no such fragment."""
    examples, predicted = trial.simulated, predictions.activation
    answered = ~predicted.isnan().any(1)

    def over(*groups: str) -> tuple[Tensor, Tensor]:
        """Simulated and true activation of some groups' tokens, concatenated."""
        rows = torch.tensor([group in groups for group in examples.groups]) & answered
        content = examples.content[rows]
        return predicted[rows][content], examples.activation[rows][content]

    def varies(*groups: str) -> bool:
        return all(len(values.unique()) > 1 for values in over(*groups))

    def correlation(*groups: str) -> float:
        if not {*groups} & {*examples.groups}:
            return math.nan
        return score(*over(*groups)).correlation if varies(*groups) else 0.0

    expected, true = over(*GROUPS)
    hits = score((expected > predictions.silent).float(), true) if len(true) > 1 else NOTHING
    is_active = torch.tensor([group != SILENT for group in trial.detected.groups])
    is_right = torch.arange(len(trial.marked)) < len(trial.marked) // 2
    predictions_made = torch.cat([answered.float().masked_fill(~answered, torch.nan), predictions.detection])
    lost = torch.cat([predictions_made, predictions.fuzzing]).isnan().float().mean().item()
    return Scores(
        top=correlation(TOP),
        random=correlation(RANDOM),
        top_and_random=correlation(TOP, RANDOM),
        all=correlation(TOP, RANDOM, ANY),
        precision=hits.precision,
        recall=hits.recall,
        detection=balanced_accuracy(predictions.detection, is_active),
        fuzzing=balanced_accuracy(predictions.fuzzing, is_right),
        constant=not varies(TOP, RANDOM),
        unanswered=lost,
    )


def balanced_accuracy(likely: Float[Tensor, "texts"], truth: Bool[Tensor, "texts"]) -> float:
    """(share of true ones called true + share of false ones called false) / 2, by a threshold of 1/2.

    Without those that have no answer; 1/2 where one kind has none left, NaN where there is none to begin with.
    """
    if truth.all() or not truth.any():
        return math.nan
    answered = ~likely.isnan()
    kinds = [(likely[answered & (truth == kind)] > 0.5) == kind for kind in (True, False)]
    return sum(kind.double().mean().item() for kind in kinds) / 2 if all(map(len, kinds)) else 0.5


def by_rule(rule: Explanation, trial: Trial) -> Predictions:
    """What a rule predicts: a fragment holds the feature if a token of it should be active; marks are right if they
    should be more active than the rest, on average."""
    simulated, detected, fuzzed = (
        rule.predict(each.tokens, each.content) for each in (trial.simulated, trial.detected, trial.fuzzed)
    )
    rest = trial.fuzzed.content & ~trial.marked
    inside, outside = ((fuzzed * each).sum(1) / each.sum(1).clamp_min(1) for each in (trial.marked, rest))
    return Predictions(simulated, (detected.amax(1) > 0).float(), (inside > outside).float())


def unanswered(trial: Trial) -> Predictions:
    """The predictions of no explanation: none."""
    activation = torch.full(trial.simulated.activation.shape, torch.nan)
    return Predictions(
        activation, torch.full((len(trial.detected),), torch.nan), torch.full((len(trial.fuzzed),), torch.nan)
    )
