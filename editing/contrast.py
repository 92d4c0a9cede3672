"""Prompts of two classes that the next token tells apart: what an experiment that removes a capability acts on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.metrics import auroc, interval, resampled
from editing.tasks.pairs import OwnScore, PromptPairs, end_logits
from editing.tasks.pronouns import PronounPrompts
from sae_core.models import LanguageModel


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
    """What is resampled before the prompts are."""

    @classmethod
    def of_pronouns(cls, prompts: PronounPrompts) -> "Contrast":
        """Female names are the positive class."""
        she, he = (torch.full_like(prompts.end, token) for token in (prompts.she, prompts.he))
        return cls(prompts.tokens, prompts.end, prompts.female, she, he, prompts.sentence, prompts.groups)

    @classmethod
    def of_pairs(cls, pairs: PromptPairs) -> "Contrast":
        """The clean prompts of pairs against the corrupted ones, in turn.

        Where two answers occur both ways round, the class of a prompt is that of its answer: the answer of
        the first such pair is positive throughout.
        """
        turned = _turned(pairs)
        answer, foil = torch.where(turned, pairs.foil, pairs.answer), torch.where(turned, pairs.answer, pairs.foil)

        def alternately(clean: Tensor, corrupted: Tensor) -> Tensor:
            return torch.stack([clean, corrupted], 1).flatten(0, 1)

        return cls(
            tokens=alternately(pairs.clean, pairs.corrupted),
            positive=alternately(~turned, turned),
            **{
                name: alternately(values, values)
                for name, values in (
                    ("end", pairs.end),
                    ("yes", answer),
                    ("no", foil),
                    ("group", pairs.groups),
                    ("template", pairs.groups),
                )
            },
        )

    def __len__(self) -> int:
        return len(self.end)

    def first(self, n: int) -> "Contrast":
        """The first `n` prompts."""
        return self.rows(slice(0, n))

    def rows(self, which: slice | Int[Tensor, "few"]) -> "Contrast":
        """Some of the prompts."""
        fields = ("tokens", "end", "positive", "yes", "no", "group", "template")
        return replace(self, **{name: getattr(self, name)[which] for name in fields})

    def score(self, logits: Float[Tensor, "*trials batch vocab"]) -> Float[Tensor, "*trials batch"]:
        """logit(yes) - logit(no), from logits at the prompts' ends."""
        yes, no = (ids.to(logits.device).expand(logits.shape[:-1])[..., None] for ids in (self.yes, self.no))
        return (logits.gather(-1, yes) - logits.gather(-1, no))[..., 0]

    def gap(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch"]:
        """P(right answer) - P(wrong one) per prompt."""
        p = logits.softmax(-1)
        yes, no = (p.gather(-1, ids.to(p.device)[:, None])[:, 0] for ids in (self.yes, self.no))
        return torch.where(self.positive.to(p.device), yes - no, no - yes)

    def mass(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch"]:
        """P(yes) + P(no) per prompt: what an edit may simply have destroyed."""
        p = logits.softmax(-1)
        return sum(p.gather(-1, ids.to(p.device)[:, None])[:, 0] for ids in (self.yes, self.no))

    def within(self, scores: Float[Tensor, "batch"]) -> float:
        """AUROC of scores for somebody who knows the group and its sign: 0.5 + mean over groups of |AUROC - 0.5|.

        An edit whose leftovers have one sign after some sentences and the other after others has a pooled
        AUROC of 0.5 and does not hide the class at all; this shows it. By chance alone it is a little above 0.5.
        """
        parts = self._mixed()
        return 0.5 + sum(abs(auroc(scores[part], self.positive[part]) - 0.5) for part in parts) / len(parts)

    def told_apart(self, scores: Float[Tensor, "batch"]) -> float:
        """How far the classes are from being alike: |AUROC - 0.5| over all, plus the same within groups."""
        return abs(auroc(scores, self.positive) - 0.5) + self.within(scores) - 0.5

    def auroc_intervals(
        self, scores: Float[Tensor, "batch"], seed: int
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """95% bootstrap intervals of the pooled AUROC and of `within`.

        The second is the basic bootstrap, reflected at the estimate: a mean of absolute values is larger in every
        resample, by as much as chance adds, and quantiles would lie above the estimate.
        """
        weights = resampled(self.template, seed)
        drawn = _weighted_auroc(scores, self.positive, weights)
        pooled = interval(drawn[~drawn.isnan()]).tolist()
        parts = [(scores[part], self.positive[part], weights[:, part]) for part in self._mixed()]
        apart = torch.stack([(_weighted_auroc(*part) - 0.5).abs() for part in parts])
        share = torch.stack([(weight.sum(1) > 0).double() for *_, weight in parts])
        drawn = 0.5 + (apart.nan_to_num(0) * share).sum(0) / share.sum(0).clamp_min(1)
        estimate = self.within(scores)
        low, high = (2 * estimate - interval(drawn).flip(0)).clamp(0.5, 1.0).tolist()
        return (pooled[0], pooled[1]), (min(low, estimate), max(high, estimate))

    def _mixed(self) -> list[Bool[Tensor, "batch"]]:
        """The groups that have three prompts of each class; all prompts as one where no group has."""
        parts = [self.group == one for one in self.group.unique()]
        counts = [(int(self.positive[part].sum()), int((~self.positive[part]).sum())) for part in parts]
        mixed = [part for part, count in zip(parts, counts, strict=True) if min(count) >= FEWEST]
        return mixed or [torch.ones_like(self.positive)]


FEWEST = 3
"""Prompts of each class that a group must have for an AUROC within it: one of each is told apart by any accident."""


def _turned(pairs: PromptPairs) -> Bool[Tensor, "batch"]:
    """The pairs whose answers occur the other way round in an earlier pair."""
    first: dict[frozenset[int], int] = {}
    answers = list(zip(pairs.answer.tolist(), pairs.foil.tolist(), strict=True))
    return torch.tensor([first.setdefault(frozenset(both), both[0]) != both[0] for both in answers])


def _weighted_auroc(
    scores: Float[Tensor, "batch"], positive: Bool[Tensor, "batch"], weights: Float[Tensor, "resamples batch"]
) -> Float[Tensor, "resamples"]:
    """AUROC with weighted cases, per row of weights; NaN where a class has none.

    sum_ij w_i w_j [s_i > s_j] / (sum_i w_i sum_j w_j),  i positive, j negative
    """
    ahead, behind = scores[positive][:, None].double(), scores[~positive][None].double()
    above = (ahead > behind).double() + 0.5 * (ahead == behind).double()
    ours, theirs = weights[:, positive], weights[:, ~positive]
    return ((ours @ above) * theirs).sum(1) / (ours.sum(1) * theirs.sum(1))


def own_score(model: LanguageModel, prompts: Contrast) -> tuple[OwnScore, float]:
    """The model's own accuracy on both classes, and its AUROC."""
    logits = end_logits(model, prompts.tokens, prompts.end).cpu()
    right, wrong = (
        torch.where(prompts.positive, a, b) for a, b in ((prompts.yes, prompts.no), (prompts.no, prompts.yes))
    )
    return OwnScore.of(logits, right, wrong, prompts.template), auroc(prompts.score(logits), prompts.positive)


def together(parts: Sequence[Contrast]) -> Contrast:
    """Several sets of prompts as one, in turn; shorter rows are filled up with their last token, where nobody looks."""
    width = max(part.tokens.shape[1] for part in parts)
    tokens = [torch.cat([p.tokens, p.tokens[:, -1:].expand(-1, width - p.tokens.shape[1])], 1) for p in parts]
    # prefixes of the whole are mixed as the parts are
    order = torch.cat([torch.arange(len(part)) / len(part) for part in parts]).argsort(stable=True)
    names = ("end", "positive", "yes", "no", "group", "template")
    rest = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Contrast(torch.cat(tokens), **rest).rows(order)
