"""What an edit leaves of a capability and what it does elsewhere: one set of figures for every method.

Capability and damage are read on prompts and text that no choice and no fit has seen, with 95% bootstrap intervals:
of prompts over names and templates, of text over contexts. The transfer tasks stand on names of the same kind.
Probes are fitted after the edit on one half of the test prompts and read on the other, both ways round, the halves
sharing no name: on prompts that an eraser was fitted on its classes have equal means, and a probe has nothing to learn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from editing.interventions.compose import unscaled
from editing.interventions.patch import FeaturePatch
from editing.metrics import bootstrap_estimate
from editing.removal.cached_runs import Elsewhere, Harm, Runs, up_to_end
from editing.removal.two_class_prompts import Contrast
from editing.tasks.pairs import at_end
from sae_core.estimate import Estimate
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import FeatureId, Site

GONE = 0.05  # AUROC within this of 0.5
EVERYWHERE = "all layers"
UNCHANGED = Estimate(0.0)


class Method(StrEnum):
    """What was edited with; the names are those of the results."""

    NONE = "no edit"
    FEATURES = "features"
    PLAIN = "features, plain ablation"
    LEACE = "LEACE"
    MEANS = "mean difference"
    ORTHOGONAL = "orthogonal projection"
    LEACE_TUNED = "LEACE, tuned"
    MEANS_TUNED = "mean difference, tuned"
    ORTHOGONAL_TUNED = "orthogonal projection, tuned"
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
    """Mean probability of the two answers together at the prompts' ends."""
    accuracy: Estimate
    """Share of prompts on which the right answer has the higher logit."""
    damage: Estimate
    """Mean KL(unedited || edited) per token of text, nats."""
    edit_size: float
    """Mean |x' - x| over the content tokens of the text, added up over the edited sites."""
    features: tuple[str, ...] = ()
    strength: float = 1.0
    gap: Estimate = UNCHANGED
    """Mean of P(right answer) - P(wrong one)."""
    rise: Estimate = UNCHANGED
    """By how much the cross-entropy of the text rises, nats per token."""
    transfer: Mapping[str, Estimate] = field(default_factory=dict)
    """AUROC on each transfer task that the model can do."""
    probe: Estimate | None = None
    """AUROC of a linear probe at the edited site (the last of them), fitted after the edit on other names."""
    probe_last: Estimate | None = None
    """The same after the last block."""
    draws: tuple[float, ...] = ()
    """Of a mean over random draws, the AUROC of each."""

    @property
    def gone(self) -> bool:
        """Whether the AUROC is at chance; of random draws, that of each."""
        return all(abs(area - 0.5) <= GONE for area in self.draws or (self.auroc.value,))


Judged = tuple[Removal, Harm]


@dataclass(frozen=True, eq=False)
class _Asked:
    """Prompts, their runs, and their weights under the bootstrap."""

    model: LanguageModel
    prompts: Contrast
    runs: Runs
    weights: Float[Tensor, "resamples batch"]

    @classmethod
    def of(cls, model: LanguageModel, prompts: Contrast, seed: int) -> "_Asked":
        return cls(model, prompts, Runs(model, prompts.tokens, up_to_end(model, prompts)), prompts.weights(seed))

    def edited(self, edits: Sequence[Intervention]) -> tuple[Float[Tensor, "batch vocab"], dict[Site, Tensor]]:
        """Logits at the prompts' ends, and the activations there at the edited sites and after the last block."""
        edited = self.runs.edited(edits)
        ends = {site: at_end(h, self.prompts.end) for site, h in edited.at.items()}
        ends[Site(self.model.n_layers - 1)] = final = at_end(edited.final, self.prompts.end)
        return self.model.unembed(final).cpu(), ends


class Judge:
    """Test prompts and test text, on which any edits are judged."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Contrast,
        elsewhere: Elsewhere,
        *,
        seed: int,
        transfers: Mapping[str, Contrast] | None = None,
        halves: Bool[Tensor, "batch"] | None = None,
    ):
        """`halves` are those between which probes are fitted and read (`Contrast.halves`); without them none are."""
        self.model, self.elsewhere, self.seed, self.halves = model, elsewhere, seed, halves
        self.asked = _Asked.of(model, prompts, seed)
        self.transfers = {name: _Asked.of(model, own, seed) for name, own in (transfers or {}).items()}

    def brief(self, edits: Sequence[Intervention], method: Method) -> Judged:
        """Capability left and damage done."""
        return self._judged(edits, method, self.asked.edited(edits)[0])

    def judge(self, edits: Sequence[Intervention], method: Method) -> Judged:
        """The same with the transfer tasks and the probes."""
        logits, ends = self.asked.edited(edits)
        removal, harm = self._judged(edits, method, logits)
        transfer = {
            name: asked.prompts.auroc_estimates(asked.prompts.score(asked.edited(edits)[0]), asked.weights)[0]
            for name, asked in self.transfers.items()
        }
        probes = {}
        if self.halves is not None:
            where = {"probe": max(edit.site for edit in edits), "probe_last": Site(self.model.n_layers - 1)}
            read = {site: self._probe(ends[site]) for site in set(where.values())}
            probes = {name: read[site] for name, site in where.items()}
        return replace(removal, transfer=transfer, **probes), harm

    def _judged(self, edits: Sequence[Intervention], method: Method, logits: Tensor) -> Judged:
        asked, prompts = self.asked, self.asked.prompts
        scores, harm = prompts.score(logits), self.elsewhere.harm(edits, self.seed)
        pooled, within = prompts.auroc_estimates(scores, asked.weights)
        removal = Removal(
            method=method,
            site=site_of(edits),
            auroc=pooled,
            within=within,
            answer_mass=prompts.mass(logits).mean().item(),
            accuracy=bootstrap_estimate(((scores > 0) == prompts.positive).double(), asked.weights),
            damage=harm.kl,
            edit_size=harm.edit_size,
            features=tuple(str(feature) for edit in edits for feature in features_of(edit)),
            strength=sum(unscaled(edit)[1] for edit in edits) / len(edits),
            gap=bootstrap_estimate(prompts.gap(logits), asked.weights),
            rise=harm.rise,
        )
        return removal, harm

    def _probe(self, ends: Float[Tensor, "batch d"]) -> Estimate:
        """AUROC of probes between the halves, its mean over the two."""
        positive, halves = self.asked.prompts.positive, self.halves
        scores = torch.empty(len(positive), dtype=torch.float64)
        for half in (halves, ~halves):
            scores[~half] = probe(ends[half], positive[half], ends[~half])
        return self.asked.prompts.auroc_in((halves, ~halves), scores, self.asked.weights)


def site_of(edits: Sequence[Intervention]) -> str:
    """Where edits are, in a result."""
    return str(edits[0].site) if len(edits) == 1 else EVERYWHERE


def features_of(edit: Intervention) -> tuple[FeatureId, ...]:
    """The features that an edit ablates; none where it is no such edit."""
    inner, _ = unscaled(edit)
    return tuple(FeatureId(inner.site, j) for j in inner.latents.tolist()) if isinstance(inner, FeaturePatch) else ()


def probe(
    x: Float[Tensor, "prompts d_in"], positive: Bool[Tensor, "prompts"], held_out: Float[Tensor, "batch d_in"]
) -> Float[Tensor, "batch"]:
    """Scores on `held_out` of a logistic regression fitted on `x`, whose coordinates are standardised."""
    from sklearn.linear_model import LogisticRegression

    wide, mean = x.double().cpu(), x.double().cpu().mean(0)
    scale = wide.std(0).clamp_min(1e-8)
    fitted = LogisticRegression(C=0.1, max_iter=2000).fit(((wide - mean) / scale).numpy(), positive.numpy())
    return torch.from_numpy(fitted.decision_function(((held_out.double().cpu() - mean) / scale).numpy()))
