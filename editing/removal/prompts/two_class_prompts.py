"""Prompts of two classes that the next token tells apart: what an experiment that removes a capability acts on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from editing.tasks.pairs import PromptPairs
from editing.tasks.pronouns import PronounPrompts

FEWEST = 3
"""Prompts of each class that a part must have for an AUROC within it: one of each is told apart by any accident."""


@dataclass(frozen=True, eq=False)
class TwoClassPrompts:
    """Prompts of a positive and a negative class, with the two tokens whose logits say which one the model expects."""

    tokens: Int[Tensor, "batch pos"]
    end: Int[Tensor, "batch"]
    """Position of the last prompt token, where the answer is read."""
    positive: Bool[Tensor, "batch"]
    yes: Int[Tensor, "batch"]
    """The right answer of a positive prompt, the wrong one of a negative."""
    no: Int[Tensor, "batch"]
    group: Int[Tensor, "batch"]
    """The last sentence of a prompt, or its template: the groups of the group-conditional AUROC."""
    template: Int[Tensor, "batch"]
    concept: Bool[Tensor, "batch pos"]
    """The tokens that say which class it is: the last of each name, or those in which a pair's prompts differ."""
    name: Int[Tensor, "batch"] | None = None
    """The name in a prompt, where every name occurs in many templates; None where prompts share only templates."""

    @classmethod
    def of_pronouns(cls, prompts: PronounPrompts) -> "TwoClassPrompts":
        """Prompts about names, of which the female ones are the positive class."""
        she, he = (torch.full_like(prompts.end, token) for token in (prompts.she, prompts.he))
        return cls(
            tokens=prompts.tokens,
            end=prompts.end,
            positive=prompts.female,
            yes=she,
            no=he,
            group=prompts.sentence,
            template=prompts.groups,
            concept=prompts.mentions,
            name=prompts.name,
        )

    @classmethod
    def of_pairs(cls, pairs: PromptPairs, positive: Bool[Tensor, "pairs"] | None = None) -> "TwoClassPrompts":
        """The clean and the corrupted prompts of pairs, alternately; the two of a pair are of opposite classes.

        `positive` says which clean prompts are of the positive class. Without it, those are whose answer has the
        smaller id of the pair's two, so that the class of an answer is the same in every split.
        """
        positive = pairs.answer < pairs.foil if positive is None else positive
        yes, no = torch.where(positive, pairs.answer, pairs.foil), torch.where(positive, pairs.foil, pairs.answer)

        def alternate(clean: Tensor, corrupted: Tensor) -> Tensor:
            return torch.stack([clean, corrupted], 1).flatten(0, 1)

        shared = {"end": pairs.end, "yes": yes, "no": no, "group": pairs.groups, "template": pairs.groups}
        shared["concept"] = (pairs.clean != pairs.corrupted) & (
            torch.arange(pairs.clean.shape[1]) <= pairs.end[:, None]
        )
        return cls(
            tokens=alternate(pairs.clean, pairs.corrupted),
            positive=alternate(positive, ~positive),
            **{name: alternate(values, values) for name, values in shared.items()},
        )

    def __len__(self) -> int:
        return len(self.end)

    def first(self, n: int) -> "TwoClassPrompts":
        """The first `n` prompts."""
        return self.rows(slice(0, n))

    def rows(self, which: slice | Int[Tensor, "few"] | Bool[Tensor, "batch"]) -> "TwoClassPrompts":
        """The prompts that `which` selects, in its order."""
        name = None if self.name is None else self.name[which]
        return replace(self, **{field: getattr(self, field)[which] for field in _FIELDS}, name=name)

    def groups_of_both_classes(self) -> list[Bool[Tensor, "batch"]]:
        """Masks of the groups with `FEWEST` prompts of each class; where there is no such group, of all prompts."""
        groups = [self.group == label for label in self.group.unique()]
        counts = [(int(self.positive[group].sum()), int((~self.positive[group]).sum())) for group in groups]
        mixed = [group for group, count in zip(groups, counts, strict=True) if min(count) >= FEWEST]
        return mixed or [torch.ones_like(self.positive)]

    def halves(self) -> Bool[Tensor, "batch"] | None:
        """Which of two halves each prompt is in; they share no name (no template, where there are no names).

        Prompts of a single template are split by pairs of neighbours. None where a half would have fewer than
        `FEWEST` prompts of a class.
        """
        label = self.template if self.name is None else self.name
        if len(label.unique()) == 1:
            label = torch.arange(len(self)) // 2
        labels, index = label.unique(return_inverse=True)
        # sorted by the share of their prompts that is positive and split alternately, so that both halves are balanced
        positive_share = torch.zeros(len(labels)).index_add(0, index, self.positive.float()) / index.bincount()
        rank = torch.empty(len(labels), dtype=torch.long)
        rank[positive_share.argsort(stable=True)] = torch.arange(len(labels))
        half = (rank % 2 == 1)[index]
        counts = [(half == side) & (self.positive == sign) for side in (False, True) for sign in (False, True)]
        return half if min(int(count.sum()) for count in counts) >= FEWEST else None


_FIELDS = ("tokens", "concept", "end", "positive", "yes", "no", "group", "template")


def together(parts: Sequence[TwoClassPrompts]) -> TwoClassPrompts:
    """Several sets of prompts as one, interleaved and without names; shorter rows are padded with their last token."""
    width = max(part.tokens.shape[1] for part in parts)
    tokens = [torch.cat([p.tokens, p.tokens[:, -1:].expand(-1, width - p.tokens.shape[1])], 1) for p in parts]
    concept = [F.pad(p.concept, (0, width - p.concept.shape[1])) for p in parts]
    # interleaved by relative position, so that the first n prompts hold each part in its proportion
    order = torch.cat([torch.arange(len(part)) / len(part) for part in parts]).argsort(stable=True)
    rest = {field: torch.cat([getattr(part, field) for part in parts]) for field in _FIELDS[2:]}
    return TwoClassPrompts(torch.cat(tokens), concept=torch.cat(concept), **rest).rows(order)
