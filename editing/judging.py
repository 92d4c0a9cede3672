"""What an edit leaves of a capability and what it does elsewhere: one set of figures for every method.

All are read on prompts and text that no choice and no fit has seen, with 95% bootstrap intervals: templates are
resampled, then prompts within templates; for text, contexts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from editing.contrast import Contrast
from editing.ground import Elsewhere, Harm, Runs, up_to_end
from editing.metrics import auroc, bootstrap
from editing.patch import FeaturePatch
from editing.scaled import Scaled
from editing.tasks.pairs import at_end
from sae_core.models import Intervention, LanguageModel
from sae_core.sites import FeatureId, Site

GONE = 0.05  # AUROC within this of 0.5
Interval = tuple[float, float]


@dataclass(frozen=True)
class Removal:
    """One method at one site (or at all of them), on the test prompts and the test text."""

    method: str
    site: str
    auroc: float
    within: float
    """AUROC for somebody who knows the sentence (`Contrast.within`)."""
    answer_mass: float
    """Mean probability of the two answers together at the prompts' ends."""
    accuracy: float
    """Share of prompts on which the right answer has the higher logit."""
    damage: float
    """Mean KL(unedited || edited) per token of text, nats."""
    edit_size: float
    """Mean |x' - x| over the content tokens of the text, added up over the edited sites."""
    features: tuple[str, ...] = ()
    strength: float = 1.0
    gap: float = 0.0
    """Mean of P(right answer) - P(wrong one)."""
    rise: float = 0.0
    """By how much the cross-entropy of the text rises, nats per token."""
    transfer: float | None = None
    """AUROC on the transfer task, where the model can do it."""
    probe: float | None = None
    """AUROC of a linear probe at the edited site (the last of them), fitted on other prompts after the edit."""
    probe_last: float | None = None
    """The same after the last block."""
    intervals: dict[str, Interval] = field(default_factory=dict)
    """95% bootstrap intervals, by field."""

    @property
    def gone(self) -> bool:
        return abs(self.auroc - 0.5) <= GONE

    def rank(self) -> tuple[int, float]:
        """Smaller is better: what is left, over all and within sentences, in steps of 0.15; then the damage.

        Finer differences are noise: the check prompts hold ten names of each class.
        """
        left = abs(self.auroc - 0.5) + self.within - 0.5
        return int(left / 0.15), self.damage


class Judge:
    """Test prompts and test text, on which any edits are judged."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Contrast,
        elsewhere: Elsewhere,
        *,
        seed: int,
        transfer: Contrast | None = None,
        probing: Contrast | None = None,
    ):
        self.model, self.prompts, self.elsewhere, self.seed = model, prompts, elsewhere, seed
        self.transfer, self.probing = transfer, probing
        self._runs = {id(p): _runs(model, p) for p in (prompts, transfer, probing) if p is not None}

    def brief(self, edits: Sequence[Intervention], method: str) -> tuple[Removal, Harm]:
        """Capability left and damage done."""
        removal, harm, _ = self._judged(edits, method)
        return removal, harm

    def judge(self, edits: Sequence[Intervention], method: str) -> tuple[Removal, Harm]:
        """The same with the transfer task and the probes."""
        removal, harm, ends = self._judged(edits, method)
        more, intervals = {}, dict(removal.intervals)
        if self.transfer is not None:
            logits = self._logits(self._edited(self.transfer, edits)[0], self.transfer)
            scores = self.transfer.score(logits)
            more["transfer"] = auroc(scores, self.transfer.positive)
            intervals["transfer"], _ = self.transfer.auroc_intervals(scores, self.seed)
        if self.probing is not None:
            fitted = self._ends(self.probing, edits)
            for name, site in {
                "probe": sorted(ends)[-2] if len(ends) > 1 else max(ends),
                "probe_last": max(ends),
            }.items():
                read = probe(fitted[site], self.probing.positive, ends[site])
                more[name] = auroc(read, self.prompts.positive)
                intervals[name], _ = self.prompts.auroc_intervals(read, self.seed)
        return replace(removal, **more, intervals=intervals), harm

    def _judged(self, edits: Sequence[Intervention], method: str) -> tuple[Removal, Harm, dict[Site, Tensor]]:
        final, at, _ = self._edited(self.prompts, edits)
        logits, prompts = self._logits(final, self.prompts), self.prompts
        scores, harm = prompts.score(logits), self.elsewhere.harm(edits, self.seed)
        right, gap = ((scores > 0) == prompts.positive).double(), prompts.gap(logits)
        pooled, within = prompts.auroc_intervals(scores, self.seed)
        removal = Removal(
            method=method,
            site=str(edits[0].site) if len(edits) == 1 else EVERYWHERE,
            auroc=auroc(scores, prompts.positive),
            within=prompts.within(scores),
            answer_mass=prompts.mass(logits).mean().item(),
            accuracy=right.mean().item(),
            damage=harm.kl,
            edit_size=harm.edit_size,
            features=tuple(str(feature) for edit in edits for feature in features_of(edit)),
            strength=_strength(edits),
            gap=gap.mean().item(),
            rise=harm.rise,
            intervals={
                "auroc": pooled,
                "within": within,
                "accuracy": bootstrap(right, prompts.template, self.seed),
                "gap": bootstrap(gap, prompts.template, self.seed),
                "damage": harm.kl_interval,
                "rise": harm.rise_interval,
            },
        )
        last = Site(self.model.n_layers - 1)
        activations = {site: at_end(h, prompts.end) for site, h in {**at, last: final}.items()}
        return removal, harm, activations

    def _edited(self, prompts: Contrast, edits: Sequence[Intervention]) -> tuple[Tensor, dict[Site, Tensor], float]:
        return self._runs[id(prompts)].edited(edits)

    def _ends(self, prompts: Contrast, edits: Sequence[Intervention]) -> dict[Site, Tensor]:
        final, at, _ = self._edited(prompts, edits)
        return {s: at_end(h, prompts.end) for s, h in {**at, Site(self.model.n_layers - 1): final}.items()}

    def _logits(self, final: Tensor, prompts: Contrast) -> Float[Tensor, "batch vocab"]:
        return self.model.unembed(at_end(final, prompts.end)).cpu()


EVERYWHERE = "all layers"


def _runs(model: LanguageModel, prompts: Contrast) -> Runs:
    return Runs(model, prompts.tokens, up_to_end(model, prompts))


def features_of(edit: Intervention) -> tuple[FeatureId, ...]:
    """The features that an edit ablates; none where it is no such edit."""
    inner = edit.edit if isinstance(edit, Scaled) else edit
    return tuple(FeatureId(inner.site, j) for j in inner.latents.tolist()) if isinstance(inner, FeaturePatch) else ()


def _strength(edits: Sequence[Intervention]) -> float:
    """The mean strength of the edits."""
    return sum(edit.strength if isinstance(edit, Scaled) else 1.0 for edit in edits) / len(edits)


def probe(
    x: Float[Tensor, "prompts d_in"], positive: Bool[Tensor, "prompts"], held_out: Float[Tensor, "batch d_in"]
) -> Float[Tensor, "batch"]:
    """Scores on `held_out` of a logistic regression fitted on `x`, whose coordinates are standardised."""
    from sklearn.linear_model import LogisticRegression

    wide, mean = x.double().cpu(), x.double().cpu().mean(0)
    scale = wide.std(0).clamp_min(1e-8)
    fitted = LogisticRegression(C=0.1, max_iter=2000).fit(((wide - mean) / scale).numpy(), positive.numpy())
    return torch.from_numpy(fitted.decision_function(((held_out.double().cpu() - mean) / scale).numpy()))
