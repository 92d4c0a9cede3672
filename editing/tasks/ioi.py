"""Indirect object identification (Wang et al. 2022): "John and Mary went to the store. John gave a book to" -> Mary.

Two corruptions. `io`: the indirect object alone becomes a third name, wherever it stands; the answers are
(clean IO, corrupted IO). `swap`: the two names swap roles, the second mention of the subject becoming the
indirect object (ABB -> ABA); the answers are (IO, S). The model's own score is that of IO against S in
both. Each half of the prompts is ABBA, half BABA, and
selection and test prompts share neither names nor templates where the vocabulary allows.
"""

import random
from dataclasses import dataclass
from enum import StrEnum

import torch

from editing.tasks import names
from editing.tasks.pairs import PromptPairs
from sae_core.errors import UserError
from sae_core.models import LanguageModel, pad

TEMPLATES = (
    "Then, {A} and {B} went to the {place}. {S} gave a {gift} to",
    "Then, {A} and {B} had a lot of fun at the {place}. {S} gave a {gift} to",
    "Then, {A} and {B} were working at the {place}. {S} decided to give a {gift} to",
    "When {A} and {B} went to the {place}, {S} gave the {gift} to",
    "When {A} and {B} got a {gift} at the {place}, {S} decided to give it to",
    "After {A} and {B} went to the {place}, {S} gave a {gift} to",
    "While {A} and {B} were working at the {place}, {S} gave a {gift} to",
    "Friends {A} and {B} found a {gift} at the {place}. {S} gave it to",
    "Two friends, {A} and {B}, went to the {place}. {S} wanted to give the {gift} to",
    "The {place} belonged to {A} and {B}. {S} sent a {gift} to",
)
PLACES = "store park school garden restaurant hospital office house station market".split()
GIFTS = "ring book ball kiss drink snack necklace computer basketball flower".split()


class Corruption(StrEnum):
    """What is changed in the corrupted prompt."""

    IO = "io"
    SWAP = "swap"


@dataclass(frozen=True)
class IOITask:
    """The words of the task that a model can use, divided into selection and test."""

    names: dict[str, list[str]]
    templates: dict[str, list[str]]
    shared: tuple[str, ...]
    """What selection and test have in common; empty where nothing had to be shared."""

    @classmethod
    def of(cls, model: LanguageModel) -> "IOITask":
        """The task in `model`'s vocabulary; raises `UserError` if it has fewer than three usable names."""
        usable = names.single_token(model, [n for pair in zip(names.FEMALE, names.MALE, strict=True) for n in pair])
        if len(usable) < 3:
            raise UserError(f"{model.name} has only {len(usable)} of the task's names as single tokens; IOI needs 3")
        example = {"A": usable[0], "B": usable[1], "S": usable[0], "place": PLACES[0], "gift": GIFTS[0]}
        templates = [t for t in TEMPLATES if names.known(model, t.format(**example))]
        shared = []
        if len(usable) >= 8:
            # in turn two by two: `usable` alternates female and male, and both halves need both
            halves = {"selection": (0, 1), "test": (2, 3)}
            divided = {split: [x for i, x in enumerate(usable) if i % 4 in turn] for split, turn in halves.items()}
        else:
            shared.append("names")
            divided = {"selection": usable, "test": usable}
        if not templates:
            raise UserError(f"{model.name} does not know the words of the IOI templates")
        if len(templates) < 2:
            shared.append("templates")
        halves = {"selection": templates[0::2], "test": templates[1::2] or templates}
        return cls(divided, halves, tuple(shared))

    def pairs(
        self, model: LanguageModel, corruption: Corruption, split: str, n: int, *, seed: int, prepend_bos: bool = True
    ) -> PromptPairs:
        """`n` distinct pairs of one split, as far as its words allow that many."""
        rng = random.Random(f"{seed}/{corruption}/{split}")
        places = [w for w in PLACES if names.known(model, w)]
        gifts = [w for w in GIFTS if names.known(model, w)]
        bos = [model.bos_id] if prepend_bos and model.bos_id is not None else []
        clean, corrupted, answers, texts = [], [], [], []
        seen: set[str] = set()
        for attempt in range(20 * n):
            if len(clean) == n:
                break
            first, second, third = rng.sample(self.names[split], 3)
            abba = len(clean) % 2 == 0
            io, subject = (first, second) if abba else (second, first)
            words = {"place": rng.choice(places), "gift": rng.choice(gifts)}
            template = rng.choice(self.templates[split])
            text = template.format(A=first, B=second, S=subject, **words)
            if corruption is Corruption.IO:
                a, b = (third, second) if abba else (first, third)
                other, wrong = template.format(A=a, B=b, S=subject, **words), third
            else:
                other, wrong = template.format(A=first, B=second, S=io, **words), subject
            if text in seen and attempt < 10 * n:
                continue
            seen.add(text)
            rows = [bos + model.to_ids(text), bos + model.to_ids(other)]
            assert len(rows[0]) == len(rows[1]), "names of one token cannot change the length"
            clean.append(rows[0])
            corrupted.append(rows[1])
            answers.append([model.continuation_ids(text, f" {name}")[0] for name in (io, wrong, subject)])
            texts.append(text)
        tokens, lengths = pad(clean, fill=model.bos_id or 0)
        if tokens.shape[1] > model.n_ctx:
            raise UserError(f"IOI prompts take {tokens.shape[1]} tokens; {model.name} reads {model.n_ctx}")
        others, _ = pad(corrupted, fill=model.bos_id or 0)
        answer, foil, rival = torch.tensor(answers).T
        return PromptPairs(f"ioi-{corruption}", tokens, others, answer, foil, rival, lengths - 1, tuple(texts))
