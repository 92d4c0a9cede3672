"""Prompts of two classes that the next token tells apart: what an experiment that removes a capability acts on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.metrics import auroc, aurocs, interval, resampled, weighted_aurocs
from editing.tasks.pairs import PromptPairs
from editing.tasks.pronouns import PronounPrompts
from editing.tasks.score import TaskScore, end_logits
from sae_core.estimate import Estimate
from sae_core.model.language_model import LanguageModel

FEWEST = 3
"""Prompts of each class that there must be for an AUROC of a part: one of each is told apart by any accident."""
Weights = Float[Tensor, "resamples batch"]
Span = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Contrast:
    """Prompts with the two tokens whose logits say which class the model takes each for."""

    tokens: Int[Tensor, "batch pos"]
    end: Int[Tensor, "batch"]
    """Position of the last prompt token, where the answer is read."""
    positive: Bool[Tensor, "batch"]
    yes: Int[Tensor, "batch"]
    """The right answer of a positive prompt, the wrong one of a negative."""
    no: Int[Tensor, "batch"]
    group: Int[Tensor, "batch"]
    """Which sentence a prompt ends in, or of which template it is: within these AUROC is also read."""
    template: Int[Tensor, "batch"]
    name: Int[Tensor, "batch"] | None = None
    """Whom a prompt is about, where every name stands in many templates; None where templates are all they share."""

    @classmethod
    def of_pronouns(cls, prompts: PronounPrompts) -> "Contrast":
        """Female names are the positive class."""
        she, he = (torch.full_like(prompts.end, token) for token in (prompts.she, prompts.he))
        sentence, template = prompts.sentence, prompts.groups
        return cls(prompts.tokens, prompts.end, prompts.female, she, he, sentence, template, prompts.name)

    @classmethod
    def of_pairs(cls, pairs: PromptPairs, positive: Bool[Tensor, "pairs"] | None = None) -> "Contrast":
        """The clean prompts of pairs against the corrupted ones, in turn.

        `positive` says which clean prompts are of the positive class, their corrupted ones being of the other. If
        it is left out, those are whose answer has the smaller id of the two.
        """
        turned = pairs.answer > pairs.foil if positive is None else ~positive
        answer, foil = torch.where(turned, pairs.foil, pairs.answer), torch.where(turned, pairs.answer, pairs.foil)

        def alternately(clean: Tensor, corrupted: Tensor) -> Tensor:
            return torch.stack([clean, corrupted], 1).flatten(0, 1)

        twice = {"end": pairs.end, "yes": answer, "no": foil, "group": pairs.groups, "template": pairs.groups}
        return cls(
            tokens=alternately(pairs.clean, pairs.corrupted),
            positive=alternately(~turned, turned),
            **{name: alternately(values, values) for name, values in twice.items()},
        )

    def __len__(self) -> int:
        return len(self.end)

    def first(self, n: int) -> "Contrast":
        """The first `n` prompts."""
        return self.rows(slice(0, n))

    def rows(self, which: slice | Int[Tensor, "few"] | Bool[Tensor, "batch"]) -> "Contrast":
        """Some of the prompts."""
        name = None if self.name is None else self.name[which]
        return replace(self, **{field: getattr(self, field)[which] for field in _FIELDS}, name=name)

    # ---- what the model says -------------------------------------------------------------------

    def score(self, logits: Float[Tensor, "*trials batch vocab"]) -> Float[Tensor, "*trials batch"]:
        """logit(yes) - logit(no), from logits at the prompts' ends."""
        yes, no = (ids.to(logits.device).expand(logits.shape[:-1])[..., None] for ids in (self.yes, self.no))
        return (logits.gather(-1, yes) - logits.gather(-1, no))[..., 0]

    def gap(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch"]:
        """P(right answer) - P(wrong one) per prompt."""
        yes, no = self._probabilities(logits)
        return torch.where(self.positive.to(yes.device), yes - no, no - yes)

    def mass(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch"]:
        """P(yes) + P(no) per prompt: what an edit may simply have destroyed."""
        return sum(self._probabilities(logits))

    def _probabilities(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        total = logits.logsumexp(-1)
        yes, no = (logits.gather(-1, ids.to(logits.device)[:, None])[:, 0] for ids in (self.yes, self.no))
        return (yes - total).exp(), (no - total).exp()

    # ---- how well the classes are told apart -----------------------------------------------------

    def within(self, scores: Float[Tensor, "batch"]) -> float:
        """AUROC of scores for somebody who knows the group and its sign: 0.5 + mean over groups of |AUROC - 0.5|.

        An edit whose leftovers have one sign after some sentences and the other after others has a pooled
        AUROC of 0.5 and does not hide the class at all; this shows it. By chance alone it is a little above 0.5.
        """
        parts = self._mixed()
        return 0.5 + sum(abs(auroc(scores[part], self.positive[part]) - 0.5) for part in parts) / len(parts)

    def told_apart(self, scores: Float[Tensor, "trials batch"]) -> Float[Tensor, "trials"]:
        """How far the classes are from being alike: |AUROC - 0.5| over all, plus the same within groups."""
        within = [aurocs(scores[:, part], self.positive[part]) - 0.5 for part in self._mixed()]
        return (aurocs(scores, self.positive) - 0.5).abs() + torch.stack(within).abs().mean(0)

    def _mixed(self) -> list[Bool[Tensor, "batch"]]:
        """The groups that have three prompts of each class; all prompts as one where no group has."""
        parts = [self.group == one for one in self.group.unique()]
        counts = [(int(self.positive[part].sum()), int((~self.positive[part]).sum())) for part in parts]
        mixed = [part for part, count in zip(parts, counts, strict=True) if min(count) >= FEWEST]
        return mixed or [torch.ones_like(self.positive)]

    def halves(self) -> Bool[Tensor, "batch"] | None:
        """Which half a prompt is in; the halves share no name (no template, where there are no names).

        Names are dealt out in turn within each class. Prompts of a single template are dealt out in twos. None where
        a half would have fewer than three prompts of a class.
        """
        unit = self.template if self.name is None else self.name
        if len(unit.unique()) == 1:
            unit = torch.arange(len(self)) // 2
        units, index = unit.unique(return_inverse=True)
        share = torch.zeros(len(units)).index_add(0, index, self.positive.float()) / index.bincount()
        turn = torch.empty(len(units), dtype=torch.long)
        turn[share.argsort(stable=True)] = torch.arange(len(units))
        half = (turn % 2 == 1)[index]
        counts = [(half == one) & (self.positive == other) for one in (False, True) for other in (False, True)]
        return half if min(int(count.sum()) for count in counts) >= FEWEST else None

    # ---- how far that can be trusted -------------------------------------------------------------

    @property
    def resampling(self) -> str:
        """What `weights` draws, in words."""
        return "templates, then prompts" if self.name is None else "names and templates, crossed"

    def weights(self, seed: int, n: int = 1000) -> Weights:
        """What each of `n` bootstrap resamples weighs every prompt; a row sums to one.

        Where each name stands in many templates, names and templates are drawn with replacement independently of
        each other, as many as there are, and a prompt weighs the product of how often its two were drawn (the
        pigeonhole bootstrap, Owen 2007): prompts that share either are not taken for independent. Elsewhere
        templates are drawn, then prompts within them.
        """
        if self.name is None:
            return resampled(self.template, seed, n)
        rng = np.random.default_rng(seed)
        weights = torch.ones(n, len(self), dtype=torch.float64)
        for labels in (self.template, self.name):
            units, index = labels.unique(return_inverse=True)
            drawn = rng.multinomial(len(units), np.full(len(units), 1 / len(units)), size=n)
            weights *= torch.from_numpy(drawn).double()[:, index]
        weights = weights[weights.sum(1) > 0]
        return weights / weights.sum(1, keepdim=True)

    def auroc_estimates(self, scores: Float[Tensor, "batch"], weights: Weights) -> tuple[Estimate, Estimate]:
        """The pooled AUROC and `within`, with 95% bootstrap intervals under `weights` of the prompts.

        The second is the basic bootstrap, reflected at the estimate: a mean of absolute values is larger in every
        resample, by as much as chance adds, and quantiles would lie above the estimate. In a resample only the groups
        count that have both classes there.
        """
        pooled = span(weighted_aurocs(scores, self.positive, weights))
        parts = [(scores[part], self.positive[part], weights[:, part]) for part in self._mixed()]
        drawn = 0.5 + torch.stack([(weighted_aurocs(*part) - 0.5).abs() for part in parts]).nanmean(0)
        estimate = self.within(scores)
        high, low = (min(1.0, max(0.5, 2 * estimate - end)) for end in span(drawn))
        within = Estimate(estimate, min(low, estimate), max(high, estimate))
        return Estimate(auroc(scores, self.positive), *pooled), within

    def auroc_in(
        self, parts: Sequence[Bool[Tensor, "batch"]], scores: Float[Tensor, "batch"], weights: Weights
    ) -> Estimate:
        """The mean of the AUROCs in some parts, whose scores are not comparable with each other."""
        mean = sum(auroc(scores[part], self.positive[part]) for part in parts) / len(parts)
        drawn = [weighted_aurocs(scores[part], self.positive[part], weights[:, part]) for part in parts]
        return Estimate(mean, *span(torch.stack(drawn).nanmean(0)))


_FIELDS = ("tokens", "end", "positive", "yes", "no", "group", "template")


def span(drawn: Float[Tensor, "resamples"]) -> Span:
    """The 95% interval of a resampled share, over the resamples in which it is defined; all there is, if in none."""
    if drawn.isnan().all():
        return 0.0, 1.0
    low, high = interval(drawn[~drawn.isnan()]).tolist()
    return low, high


def model_score(model: LanguageModel, prompts: Contrast) -> tuple[TaskScore, float]:
    """The unedited model's accuracy on both classes, and its AUROC."""
    logits = end_logits(model, prompts.tokens, prompts.end).cpu()
    positive = prompts.positive
    right, wrong = (torch.where(positive, a, b) for a, b in ((prompts.yes, prompts.no), (prompts.no, prompts.yes)))
    return TaskScore.of(logits, right, wrong, prompts.weights(0)), auroc(prompts.score(logits), positive)


def together(parts: Sequence[Contrast]) -> Contrast:
    """Several sets of prompts as one, in turn and without names; shorter rows are filled up with their last token."""
    width = max(part.tokens.shape[1] for part in parts)
    tokens = [torch.cat([p.tokens, p.tokens[:, -1:].expand(-1, width - p.tokens.shape[1])], 1) for p in parts]
    # prefixes of the whole are mixed as the parts are
    order = torch.cat([torch.arange(len(part)) / len(part) for part in parts]).argsort(stable=True)
    rest = {field: torch.cat([getattr(part, field) for part in parts]) for field in _FIELDS[1:]}
    return Contrast(torch.cat(tokens), **rest).rows(order)
