"""Prompts in pairs: what an experiment about one behaviour is made of."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.tasks import names
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.model.padding import pad

PATIENCE = 500
"""Draws in a row that bring nothing new before a task has no more prompts to give."""
END = "END"
"""The role of the last token of a prompt, which every prompt has."""

Place = int | str
"""A position in prompts of different lengths: a number counted from the end, or a role."""


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """Clean prompts, their minimally changed counterparts, and the two answers that tell them apart."""

    name: str
    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    answer: Int[Tensor, "batch"]
    """The right next token of the clean prompt."""
    foil: Int[Tensor, "batch"]
    """The token to compare it with: a right one of the corrupted prompt."""
    rival: Int[Tensor, "batch"]
    """The wrong answer that the clean prompt itself suggests; the model's own score compares with it."""
    end: Int[Tensor, "batch"]
    """Position of the last prompt token, where answers are read; what follows is padding."""
    groups: Int[Tensor, "batch"]
    """The template of each prompt: prompts that share one are not independent."""
    texts: tuple[str, ...] = ()
    """The clean prompts as text."""
    roles: Mapping[str, Int[Tensor, "batch"]] = field(default_factory=dict)
    """Positions of the tokens that have a part in the task, by the name of the part; `END` is there in any case."""

    def __len__(self) -> int:
        return len(self.answer)

    def place(self, position: Place) -> Int[Tensor, "batch"]:
        """Where a position is in each prompt; raises `UserError` for one that is not there."""
        if isinstance(position, str):
            roles = {**self.roles, END: self.end}
            if position not in roles:
                raise UserError(f"no position {position!r} in prompts of {self.name}; they have {', '.join(roles)}")
            return roles[position]
        place = self.end + 1 + position
        if position >= 0 or (place < 0).any():
            raise UserError(
                f"no position {position} in prompts of {int(self.end.min()) + 1} tokens; positions count from the "
                "end, -1 being the last"
            )
        return place


class Mention(NamedTuple):
    """Where a word that has a part in the task stands in a prompt."""

    role: str
    word: str
    """As it continues what is before it, with its space."""
    nth: int
    """Which of the word's places it is, from 0."""


@dataclass(frozen=True)
class TextPair:
    """One pair as text. Answers are as they continue the prompt, with the space that a new word begins with."""

    clean: str
    corrupted: str
    answer: str
    foil: str
    rival: str
    group: Hashable
    """What the prompt shares with others, as a rule its template."""
    mentions: tuple[Mention, ...] = ()
    """The words of the clean prompt that have a part in the task."""

    def ids(self, model: LanguageModel) -> tuple[list[int], list[int], list[int]]:
        """Token ids of the clean prompt, of the corrupted one, and of answer, foil and rival; no BOS.

        Raises `UserError`, naming the word, if one is unknown, if an answer is not exactly one token, or if
        clean and corrupted differ in length or not at all.
        """
        if word := names.unknown_word(model, f"{self.clean} {self.corrupted}"):
            raise UserError(f"{model.name} has no token for {word!r}")
        clean, corrupted = model.to_ids(self.clean), model.to_ids(self.corrupted)
        if len(clean) != len(corrupted):
            clean_words, corrupted_words = _difference(self.clean, self.corrupted)
            raise UserError(
                f"clean and corrupted must be equally long; with {clean_words!r} the prompt is {len(clean)} tokens of "
                f"{model.name}, with {corrupted_words!r} {len(corrupted)}"
            )
        if clean == corrupted:
            raise UserError(f"clean and corrupted are the same tokens of {model.name}: {self.clean!r}")
        answers = [answer_id(model, self.clean, text) for text in (self.answer, self.foil, self.rival)]
        if answers[0] in answers[1:]:
            raise UserError(f"the answer {self.answer!r} is its own alternative; they must be different tokens")
        return clean, corrupted, answers


def answer_id(model: LanguageModel, prompt: str, text: str) -> int:
    """The one token that `text` is after `prompt`; raises `UserError`, naming it, if it is unknown or several."""
    ids = model.continuation_ids(prompt, text)
    if model.tokenizer.unk_token_id in ids and not names.known(model, text):
        raise UserError(f"{model.name} has no token for {text.strip()!r}")
    if len(ids) != 1:
        raise UserError(f"{text!r} is {len(ids)} tokens of {model.name}; an answer must be one")
    return ids[0]


def _difference(clean: str, corrupted: str) -> tuple[str, str]:
    """The words in which two texts differ, without what they begin and end with alike, and at least one of each."""
    clean_words, corrupted_words = clean.split(), corrupted.split()
    while len(clean_words) > 1 < len(corrupted_words) and clean_words[0] == corrupted_words[0]:
        clean_words, corrupted_words = clean_words[1:], corrupted_words[1:]
    while len(clean_words) > 1 < len(corrupted_words) and clean_words[-1] == corrupted_words[-1]:
        clean_words, corrupted_words = clean_words[:-1], corrupted_words[:-1]
    return " ".join(clean_words), " ".join(corrupted_words)


def as_tokens(model: LanguageModel, name: str, pairs: Sequence[TextPair], *, prepend_bos: bool) -> PromptPairs:
    """`pairs` in `model`'s tokens; raises `UserError` for one that does not fit (`TextPair.ids`)."""
    if not pairs:
        raise UserError(f"{name}: there is not one prompt")
    rows = [
        (*(model.with_bos(ids, prepend=prepend_bos) for ids in (clean, corrupted)), answers)
        for clean, corrupted, answers in (pair.ids(model) for pair in pairs)
    ]
    tokens, lengths = pad([clean for clean, _, _ in rows], fill=model.bos_id or 0)
    others, _ = pad([corrupted for _, corrupted, _ in rows], fill=model.bos_id or 0)
    if tokens.shape[1] > model.n_ctx:
        raise UserError(f"{name} prompts take {tokens.shape[1]} tokens; {model.name} reads {model.n_ctx}")
    answer, foil, rival = torch.tensor([answers for _, _, answers in rows]).T
    texts, groups = tuple(pair.clean for pair in pairs), numbered(pair.group for pair in pairs)
    roles = {
        mention.role: torch.tensor(
            [_stands(model, pair.mentions[i], row[0]) for pair, row in zip(pairs, rows, strict=True)]
        )
        for i, mention in enumerate(pairs[0].mentions)
    }
    return PromptPairs(name, tokens, others, answer, foil, rival, lengths - 1, groups, texts, roles)


def _stands(model: LanguageModel, mention: Mention, ids: Sequence[int]) -> int:
    """The position of the last token of a mention; raises `UserError`, naming the word, if it is not there."""
    word = model.continuation_ids("Then", mention.word)
    ends = [i + len(word) - 1 for i in range(len(ids)) if list(ids[i : i + len(word)]) == word]
    if len(ends) <= mention.nth:
        raise UserError(f"{model.name} has {mention.word.strip()!r} {len(ends)} times in a prompt, for {mention.role}")
    return ends[mention.nth]


def numbered(labels) -> Int[Tensor, "batch"]:
    """Labels as numbers, counted in the order in which they first come."""
    labels = list(labels)
    number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return torch.tensor([number[label] for label in labels])


def at_end(h: Float[Tensor, "batch pos d"], end: Int[Tensor, "batch"]) -> Float[Tensor, "batch d"]:
    """Rows of `h` at each prompt's last position."""
    return h[torch.arange(len(h), device=h.device), end.to(h.device)]
