"""What an edit leaves of a capability and what it does to other text: one set of figures for every method.

Capability and damage are read on prompts and text that no choice and no fit has seen, with 95% bootstrap intervals:
of prompts over names and templates, of text over contexts. The transfer tasks use names of the same kind.
Probes are fitted after the edit on one half of the test prompts and read on the other, both ways round; the halves
share no name. On prompts that an eraser was fitted on, its classes have equal means, and a probe finds nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from editing.interventions.compose import unscaled
from editing.interventions.patch import FeaturePatch
from editing.metrics import bootstrap_estimate, weighted_aurocs
from editing.removal.measurement.cached_runs import TokenRuns, ablated_latents, up_to_end
from editing.removal.measurement.damage_text import Damage, DamageText
from editing.removal.prompts.class_scores import answer_probabilities, scores_of
from editing.removal.prompts.resampling import Weights, bootstrap_weights, conditional_auroc, mean_auroc, pooled_auroc
from editing.removal.prompts.two_class_prompts import TwoClassPrompts
from editing.tasks.pairs import at_end
from sae_core.estimate import Estimate
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import FeatureId, Site

EVERYWHERE = "all layers"
UNCHANGED = Estimate(0.0)


class Method(StrEnum):
    """What was edited with; the names are those of the results."""

    NONE = "no edit"
    FEATURES = "features"
    PLAIN = "features, set to zero"
    MEAN = "features, set to their mean"
    RESAMPLED = "features, resampled"
    LEACE = "LEACE"
    MEANS = "mean difference"
    ORTHOGONAL = "orthogonal projection"
    RANDOM_FEATURES = "random features"
    RANDOM_DIRECTIONS = "random directions"


@dataclass(frozen=True)
class Removal:
    """One method at one site (or at all of them), on the test prompts and the test text."""

    method: Method
    site: str
    auroc: Estimate
    within: Estimate
    """Group-conditional AUROC: 0.5 + mean over sentences of |AUROC - 0.5|."""
    answer_mass: float
    """Mean probability of the two answers together at the prompts' ends, which an edit may simply have destroyed."""
    accuracy: Estimate
    """Share of prompts on which the right answer has the higher logit."""
    damage: Estimate
    """Mean KL(unedited || edited) per token of text, nats."""
    edit_size: float
    """Mean |x' - x| over the content tokens of the text, added up over the edited sites."""
    share_changed: float = 0.0
    """Of those tokens, the ones whose activation is changed at all: why an edit of rare features does little damage."""
    features: tuple[str, ...] = ()
    strengths: tuple[float, ...] = ()
    """Of each feature, beside the strength of the whole."""
    strength: float = 1.0
    """Of the fitted edit."""
    gap: Estimate = UNCHANGED
    """Mean of P(right answer) - P(wrong answer)."""
    rise: Estimate = UNCHANGED
    """Rise of the cross-entropy of the text, nats per token."""
    transfer: Mapping[str, Estimate] = field(default_factory=dict)
    """AUROC on each transfer task that the model can do."""
    probe: Estimate | None = None
    """AUROC of a linear probe at the edited site (the last of them), fitted after the edit on other names."""
    probe_last: Estimate | None = None
    """The same after the last block."""
    draws: tuple[float, ...] = ()
    """Of a mean over random draws, the AUROC of each."""

    @property
    def left(self) -> float:
        """Capability left, 2 |AUROC - 0.5|; of random draws, the mean of each draw's."""
        areas = self.draws or (self.auroc.value,)
        return sum(2 * abs(area - 0.5) for area in areas) / len(areas)


@dataclass(frozen=True)
class Evaluated:
    """A removal, its damage, and the AUROC in every bootstrap resample, the same for all methods."""

    removal: Removal
    damage: Damage
    auroc_resamples: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _TestPrompts:
    """Test prompts with their runs and their weights under the bootstrap."""

    model: LanguageModel
    prompts: TwoClassPrompts
    runs: TokenRuns
    weights: Weights

    @classmethod
    def of(cls, model: LanguageModel, prompts: TwoClassPrompts, seed: int) -> "_TestPrompts":
        runs = TokenRuns(model, prompts.tokens, up_to_end(model, prompts))
        return cls(model, prompts, runs, bootstrap_weights(prompts, seed))

    def edited(self, edits: Sequence[Intervention]) -> tuple[Float[Tensor, "batch vocab"], dict[Site, Tensor]]:
        """Logits at the prompts' ends, and the activations there at the edited sites and after the last block."""
        run = self.runs.edited(edits)
        ends = {site: at_end(h, self.prompts.end) for site, h in run.at.items()}
        ends[Site(self.model.n_layers - 1)] = final = at_end(run.final, self.prompts.end)
        return self.model.unembed(final).cpu(), ends

    def auroc(self, edits: Sequence[Intervention]) -> Estimate:
        """The AUROC that the edits leave."""
        return pooled_auroc(self.prompts, scores_of(self.prompts, self.edited(edits)[0]), self.weights)


class Evaluator:
    """Test prompts and test text, on which any edits are evaluated."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: TwoClassPrompts,
        text: DamageText,
        *,
        seed: int,
        transfers: Mapping[str, TwoClassPrompts] | None = None,
        halves: Bool[Tensor, "batch"] | None = None,
    ):
        """`halves` are those between which probes are fitted and read (`TwoClassPrompts.halves`); None: no probes."""
        self.model, self.text, self.seed, self.halves = model, text, seed, halves
        self.test = _TestPrompts.of(model, prompts, seed)
        self.transfers = {name: _TestPrompts.of(model, task, seed) for name, task in (transfers or {}).items()}

    def capability_and_damage(self, edits: Sequence[Intervention], method: Method) -> Evaluated:
        """The figures on the test prompts and the text, without transfer tasks and probes."""
        return self._evaluated(edits, method, self.test.edited(edits)[0])

    def evaluate(self, edits: Sequence[Intervention], method: Method) -> Evaluated:
        """All figures."""
        logits, ends = self.test.edited(edits)
        evaluated = self._evaluated(edits, method, logits)
        transfer = {name: task.auroc(edits) for name, task in self.transfers.items()}
        probes: dict[str, Estimate] = {}
        if self.halves is not None:
            read_at = {"probe": max(edit.site for edit in edits), "probe_last": Site(self.model.n_layers - 1)}
            probe_at = {site: self._probe(ends[site], self.halves) for site in set(read_at.values())}
            probes = {name: probe_at[site] for name, site in read_at.items()}
        return replace(evaluated, removal=replace(evaluated.removal, transfer=transfer, **probes))

    def _evaluated(
        self, edits: Sequence[Intervention], method: Method, logits: Float[Tensor, "batch vocab"]
    ) -> Evaluated:
        prompts, weights = self.test.prompts, self.test.weights
        scores, damage = scores_of(prompts, logits), self.text.damage(edits, self.seed)
        right, wrong = answer_probabilities(prompts, logits)
        removal = Removal(
            method=method,
            site=str(edits[0].site) if len(edits) == 1 else EVERYWHERE,
            auroc=pooled_auroc(prompts, scores, weights),
            within=conditional_auroc(prompts, scores, weights),
            answer_mass=(right + wrong).mean().item(),
            accuracy=bootstrap_estimate(((scores > 0) == prompts.positive).double(), weights),
            damage=damage.kl,
            edit_size=damage.edit_size,
            share_changed=damage.share_changed,
            features=tuple(str(FeatureId(edit.site, j)) for edit in edits for j in ablated_latents(edit)),
            strengths=tuple(strength for edit in edits for strength in _strengths(edit)),
            strength=sum(unscaled(edit)[1] for edit in edits) / len(edits),
            gap=bootstrap_estimate(right - wrong, weights),
            rise=damage.rise,
        )
        areas = weighted_aurocs(scores.double(), prompts.positive, weights)
        # a resample without one of the classes says nothing: there the AUROC is taken to be that of all prompts
        areas = torch.where(areas.isnan(), torch.tensor(removal.auroc.value).double(), areas)
        return Evaluated(removal, damage, tuple(areas.tolist()))

    def _probe(self, ends: Float[Tensor, "batch d"], halves: Bool[Tensor, "batch"]) -> Estimate:
        """The mean of the AUROCs of two probes, each fitted on one half of the prompts and read on the other."""
        positive = self.test.prompts.positive
        scores = torch.empty(len(positive), dtype=torch.float64)
        for half in (halves, ~halves):
            scores[~half] = probe_scores(ends[half], positive[half], ends[~half])
        return mean_auroc(self.test.prompts, (halves, ~halves), scores, self.test.weights)


def _strengths(edit: Intervention) -> list[float]:
    """How strongly each of its features is ablated."""
    inner, _ = unscaled(edit)
    if not isinstance(inner, FeaturePatch):
        return []
    return [1.0] * len(inner.latents) if inner.strengths is None else inner.strengths.tolist()


def probe_scores(
    x: Float[Tensor, "prompts d_in"], positive: Bool[Tensor, "prompts"], held_out: Float[Tensor, "batch d_in"]
) -> Float[Tensor, "batch"]:
    """Scores on `held_out` of a logistic regression fitted on `x`, whose coordinates are standardised."""
    from sklearn.linear_model import LogisticRegression

    x, held_out = x.double().cpu(), held_out.double().cpu()
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-8)
    regression = LogisticRegression(C=0.1, max_iter=2000).fit(((x - mean) / deviation).numpy(), positive.numpy())
    return torch.from_numpy(regression.decision_function(((held_out - mean) / deviation).numpy()))


def mean_over_draws(draws: Sequence[Evaluated]) -> Evaluated:
    """The mean over random draws, without their features; intervals run from the lowest end to the highest.

    The AUROC of each draw is kept in `Removal.draws`: AUROCs on either side of 0.5 average to 0.5. A single draw is
    returned as it is.
    """
    first = draws[0]
    if len(draws) == 1:
        return replace(first, removal=replace(first.removal, features=(), strengths=()))
    removals, damages = [draw.removal for draw in draws], [draw.damage for draw in draws]
    transfers = {name: [removal.transfer[name] for removal in removals] for name in first.removal.transfer}
    removal = replace(
        first.removal,
        **_means(removals),
        transfer={name: _mean_estimate(estimates) for name, estimates in transfers.items()},
        features=(),
        strengths=(),
        draws=tuple(removal.auroc.value for removal in removals),
    )
    return replace(first, removal=removal, damage=replace(first.damage, **_means(damages)))


def _means(results: Sequence[Removal] | Sequence[Damage]) -> dict[str, Any]:
    """The means of all fields that are numbers or estimates."""
    values = {field.name: [getattr(result, field.name) for result in results] for field in fields(results[0])}
    numbers = {name: _mean(column) for name, column in values.items() if isinstance(column[0], float)}
    estimates = {name: _mean_estimate(column) for name, column in values.items() if isinstance(column[0], Estimate)}
    return numbers | estimates


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_estimate(draws: Sequence[Estimate]) -> Estimate:
    return Estimate(_mean([e.value for e in draws]), min(e.low for e in draws), max(e.high for e in draws))
