"""Pronoun prediction: "Lily was tired because" -> she; names of the two classes in equal number.

Names may take several tokens; the pronouns may not. The splits share no names and no templates, a template
being an opening with a sentence; every opening and every sentence occurs in each split.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from editing.metrics import auroc
from editing.tasks import names
from editing.tasks.pairs import OwnScore, at_end
from sae_core.errors import UserError
from sae_core.models import LanguageModel, pad

# Each name stands twice: where it is introduced, and as the subject of the sentence that needs the pronoun.
OPENINGS = (
    "{N} lived in London.",
    "Once there was a teacher called {N}.",
    "{N} was a famous painter.",
    "Every day {N} walked to the park.",
    "{N} lived in Paris.",
    "Once there was a farmer called {N}.",
    "{N} was a new baker.",
    "Every morning {N} walked to the store.",
)
SENTENCES = (
    "{N} was happy because",
    "{N} was sad, so",
    "{N} opened the door and",
    "{N} was tired because",
    "{N} likes the park, and",
    "{N} was proud, so",
    "{N} said hello because",
    "{N} was playing when",
)


class Split(StrEnum):
    """What prompts are for: to choose an edit, to check the choice on other names, to report."""

    SELECTION = "selection"
    CHECK = "check"
    TEST = "test"


# Names are dealt out in turn, half of them to the test. Every opening goes with every sentence, and the
# combinations are dealt out along the diagonals, so that each split has all openings and all sentences.
_NAMES = {Split.SELECTION: slice(0, None, 4), Split.CHECK: slice(2, None, 4), Split.TEST: slice(1, None, 2)}
TEMPLATES = {
    split: [f"{a} {b}" for i, a in enumerate(OPENINGS) for j, b in enumerate(SENTENCES) if (i + j) % 3 == turn]
    for turn, split in enumerate(Split)
}
PRONOUNS = ("she", "he", "her", "his", "him", "herself", "himself", "hers", "She", "He", "Her", "His")


@dataclass(frozen=True, eq=False)
class PronounPrompts:
    """Prompts after which one of two pronouns is due."""

    tokens: Int[Tensor, "batch pos"]
    end: Int[Tensor, "batch"]
    """Position of the last prompt token, where the pronoun is predicted."""
    female: Bool[Tensor, "batch"]
    she: int
    he: int
    texts: tuple[str, ...]
    sentence: Int[Tensor, "batch"]
    """Which of `SENTENCES` each prompt ends in."""

    def __len__(self) -> int:
        return len(self.end)

    def first(self, n: int) -> "PronounPrompts":
        """The first `n` prompts."""
        fields = ("tokens", "end", "female", "texts", "sentence")
        return replace(self, **{name: getattr(self, name)[:n] for name in fields})

    def within(self, scores: Tensor) -> float:
        """AUROC of scores `[batch]` for somebody who knows the sentence and its sign: 0.5 + mean |AUROC - 0.5|.

        An edit whose leftovers have one sign after some sentences and the other after others has a pooled
        AUROC of 0.5 and does not hide the class at all; this shows it. By chance alone it is a little above 0.5.
        """
        parts = [self.sentence == one for one in self.sentence.unique()]
        parts = [part for part in parts if self.female[part].any() and not self.female[part].all()]
        return 0.5 + sum(abs(auroc(scores[part], self.female[part]) - 0.5) for part in parts) / len(parts)

    def score(self, logits: Tensor) -> Tensor:
        """logit(she) - logit(he) from logits `[..., batch, vocab]` at the end of the prompts."""
        return logits[..., self.she] - logits[..., self.he]


def pronoun_prompts(
    model: LanguageModel, splits: Sequence[Split], n: int, *, seed: int, prepend_bos: bool = True
) -> PronounPrompts:
    """`n` prompts of some splits taken together, or as many as their words allow, half of each class.

    Raises `UserError` if "she" or "he" is not one token here, or the words of the task are unknown.
    """
    rng = random.Random(f"{seed}/pronouns/{'/'.join(splits)}")
    templates = {split: [t for t in TEMPLATES[split] if names.known(model, t.format(N="Lily"))] for split in splits}
    if not all(templates.values()):
        raise UserError(f"{model.name} does not know the words of the pronoun task")
    answers = {}
    for word in ("she", "he"):
        ids = model.continuation_ids(templates[splits[0]][0].format(N="Lily"), f" {word}")
        if len(ids) != 1 or not names.known(model, word):
            raise UserError(f"{word!r} is not a single token of {model.name}; the pronoun task needs it to be one")
        answers[word] = ids[0]
    usable = {group: [x for x in everyone if names.known(model, x)] for group, everyone in _GROUPS.items()}
    if min(map(len, usable.values())) < 4:
        raise UserError(f"{model.name} knows too few of the task's names")
    bos = [model.bos_id] if prepend_bos and model.bos_id is not None else []
    rows, female, texts = [], [], []
    cases = {
        group: [t.format(N=x) for split in splits for x in known[_NAMES[split]] for t in templates[split]]
        for group, known in usable.items()
    }
    n_each = min(n // 2, *map(len, cases.values()))
    for group, is_female in (("female", True), ("male", False)):
        for text in rng.sample(cases[group], n_each):
            rows.append(bos + model.to_ids(text))
            female.append(is_female)
            texts.append(text)
    order = rng.sample(range(len(rows)), len(rows))  # any prefix is about balanced
    tokens, lengths = pad([rows[i] for i in order], fill=model.bos_id or 0)
    female = torch.tensor([female[i] for i in order])
    if tokens.shape[1] > model.n_ctx:
        raise UserError(f"pronoun prompts take {tokens.shape[1]} tokens; {model.name} reads {model.n_ctx}")
    texts = tuple(texts[i] for i in order)
    endings = [sentence.format(N="").strip() for sentence in SENTENCES]
    sentence = torch.tensor([next(i for i, e in enumerate(endings) if text.endswith(e)) for text in texts])
    return PronounPrompts(tokens, lengths - 1, female, answers["she"], answers["he"], texts, sentence)


_GROUPS = {"female": names.FEMALE, "male": names.MALE}


def pronoun_ids(model: LanguageModel) -> list[int]:
    """Single tokens that are pronouns of either class: damage is measured away from them."""
    found = set()
    for word in PRONOUNS:
        for ids in (model.continuation_ids("Then", f" {word}"), model.to_ids(word)):
            if len(ids) == 1 and names.known(model, word):
                found.add(ids[0])
    return sorted(found)


@torch.no_grad()
def own_score(model: LanguageModel, prompts: PronounPrompts) -> tuple[OwnScore, float]:
    """The model's own accuracy, and its AUROC of logit(she) - logit(he)."""
    last = model.sites()[-1]
    logits = model.unembed(at_end(model.record(prompts.tokens, [last])[last], prompts.end)).cpu()
    signed = prompts.score(logits) * torch.where(prompts.female, 1.0, -1.0)
    right = torch.where(prompts.female, prompts.she, prompts.he)
    own = OwnScore(
        accuracy=(signed > 0).double().mean().item(),
        top1=(logits.argmax(-1) == right).double().mean().item(),
        logit_difference=signed.mean().item(),
        n=len(prompts),
    )
    return own, auroc(prompts.score(logits), prompts.female)
