"""What is asked of tokens: yes-or-no questions whose answers are known, for the probes.

Of any text what its characters say (`circuits/features/predicates.py`), and where a sentence begins. Of the storybook
what its grammar knows besides: documents are drawn anew, with the truth of every token. And of a user's JSON lines the
label of each text, asked at its last token. A question is kept if it has `LEAST` answers of either kind to choose on,
and as many held out. Of each so many tokens are drawn as are read, the same ones where questions share them.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.features.predicates import predicates
from editing.metrics import estimate_from
from sae_core.data.text import share_of
from sae_core.dictionaries.baselines import Basis
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.files import parse_json, read_text, user_path
from sae_core.model.language_model import LanguageModel
from sae_core.model.padding import pad
from sae_core.seeds import generator_for
from sae_core.storybook.grammar import Grammar, vocabulary
from sae_core.storybook.page import END, Token, female
from subrank.studies.metrics.measured import ProbeTask
from subrank.studies.metrics.probe import Labels, Probed, before_activation, entropies, probe
from subrank.studies.metrics.reading import Reading

LEAST = 16
MOST = 2048
"""Tokens to choose on, of each question at most."""
LONGEST = 128
"""Tokens of a user's text that are read, the last ones, at most."""
NOT_ASKED = -1


@dataclass(frozen=True, eq=False)
class Questions:
    """Texts, and for each question the answer at every token: 1, 0, or `NOT_ASKED`."""

    tokens: Int[Tensor, "texts pos"]
    answers: dict[str, Int[Tensor, "texts pos"]]


Split = tuple[Questions, Questions]
"""(To choose on, held out)."""


def of_characters(model: LanguageModel, tokens: Int[Tensor, "contexts pos"]) -> Questions:
    """What the characters of a text say."""
    truths = predicates(model, tokens)
    distinct, place = tokens.unique(return_inverse=True)
    ends = torch.tensor([model.token_text(token).strip()[-1:] in (".", "!", "?") for token in distinct.tolist()])[place]
    after = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1)
    answers = {name: truth.long() for name, truth in (truths | {"first of a sentence": after}).items()}
    for each in answers.values():
        each[:, -1] = NOT_ASKED  # what comes next is not known
    return Questions(tokens, answers)


# ---- the grammar of the storybook ------------------------------------------------------------------

_GRAMMAR: dict[str, Callable[[Token, Token], bool | None]] = {
    "a bracket or quote is open": lambda here, following: bool(following.open),
    "two are open": lambda here, following: len(following.open) > 1,
    "one closes next": lambda here, following: following.role == "close",
    "a pronoun is next": lambda here, following: following.role == "pronoun",
    "the recipient is next": lambda here, following: following.role == "recipient",
    "a woman is the subject": lambda here, following: female(here.subject) if here.subject else None,
}
"""Answers from a token and the one after it; None where the question makes no sense."""
_REGISTERS = ("code", "german", "medicine", "law", "science", "weather", "recipe", "letter")


def of_grammar(model: LanguageModel, n_texts: int, n_ctx: int, seed: int) -> Split:
    """Documents of the storybook's grammar with what it knows of them, `n_texts` for each part."""
    grammar, rng = Grammar(), random.Random(f"{seed}/probe tasks")
    parts = [_known(model, [grammar.document(rng)[: n_ctx - 1] for _ in range(n_texts)]) for _ in range(2)]
    return parts[0], parts[1]


def knows_grammar(model: LanguageModel) -> bool:
    """Whether every word of the grammar is a token of the model: what no vocabulary but the storybook's has."""
    return set(vocabulary()) <= getattr(model.tokenizer, "get_vocab", dict)().keys()


def _known(model: LanguageModel, documents: Sequence[Sequence[Token]]) -> Questions:
    ids = model.tokenizer.get_vocab()
    tokens, _ = pad([[ids[END], *(ids[token.text] for token in document)] for document in documents])
    names = [*_GRAMMAR, *(f"register: {name}" for name in _REGISTERS)]
    answers = {name: torch.full_like(tokens, NOT_ASKED) for name in names}
    for row, document in enumerate(documents):
        for place, (here, following) in enumerate(pairwise(document), 1):
            truths = {name: of(here, following) for name, of in _GRAMMAR.items()}
            truths |= {f"register: {name}": here.register == name for name in _REGISTERS}
            for name, truth in truths.items():
                answers[name][row, place] = NOT_ASKED if truth is None else int(truth)
    return Questions(tokens, answers)


# ---- a user's labels -------------------------------------------------------------------------------


def of_labels(model: LanguageModel, path: Path) -> Split:
    """The labels of texts in a file of JSON lines; half of the texts, by a hash, are held out.

    Raises `UserError` with the line for what is no such object, and where a task has too few answers of a kind.
    """
    path = user_path(path)
    lines = [(n, text) for n, text in enumerate(read_text(path).split("\n"), 1) if text.strip()]
    parts: tuple[list[Any], list[Any]] = ([], [])
    for number, text in lines:
        ids, task, label = _labelled(model, parse_json(text, f"{path}, line {number}"), f"{path}, line {number}", path)
        parts[share_of(ids) < 0.5].append((model.with_bos(ids), task, label))
    split = [_asked_at_end(part) for part in parts if part]
    if len(split) < 2 or not kept(*split):
        raise UserError(f"{path} has no task with {LEAST} texts of either label to choose on, and {LEAST} held out")
    return split[0], split[1]


def _labelled(model: LanguageModel, line: Any, where: str, path: Path) -> tuple[list[int], str, bool]:
    shape = '{"text": "...", "label": true or false}'
    if not isinstance(line, dict) or not isinstance(line.get("text"), str) or line.get("label") not in (0, 1):
        raise UserError(f'{where}: expected {shape}, and "task" where there are several')
    ids = model.to_ids(line["text"])[1 - min(LONGEST, model.n_ctx) :]
    if not ids:
        raise UserError(f"{where}: the text has no tokens; leave the line out")
    return ids, str(line.get("task", path.stem)), bool(line["label"])


def _asked_at_end(part: Sequence[tuple[list[int], str, bool]]) -> Questions:
    tokens, lengths = pad([ids for ids, _, _ in part])
    answers = {task: torch.full_like(tokens, NOT_ASKED) for _, task, _ in part}
    for row, (_, task, label) in enumerate(part):
        answers[task][row, int(lengths[row]) - 1] = int(label)
    return Questions(tokens, answers)


# ---- with activations ------------------------------------------------------------------------------


def kept(training: Questions, held: Questions) -> list[str]:
    """The questions that have enough answers of either kind in both parts, also once these are thinned to `MOST`."""

    def enough(questions: Questions, name: str) -> bool:
        answers = questions.answers.get(name, torch.tensor([]))
        n = torch.stack([answers == 0, answers == 1]).flatten(1).sum(1)
        return bool(n.min() * min(1.0, MOST / max(1, int(n.sum()))) >= LEAST)

    return [name for name in training.answers if enough(training, name) and enough(held, name)]


def labels_at(reading: Reading, questions: Questions, names: Sequence[str], most: int | None = None) -> Labels:
    """The answers beside activations, of each question at most so many of the tokens that count and are asked."""
    answers = torch.stack([questions.answers[name] for name in names]).to(reading.counted.device)
    asked = reading.counted & (answers != NOT_ASKED)
    if most:  # of each question the first ones in one random order of all tokens: shared tokens are shared
        order = torch.randperm(asked[0].numel(), generator=generator_for(0, "tokens of questions")).to(asked.device)
        drawn = asked.flatten(1)[:, order]
        drawn &= drawn.cumsum(1) <= most
        asked = torch.zeros_like(drawn).scatter(1, order.expand_as(drawn), drawn).view_as(asked)
    chosen = asked.any(0)
    of_rows = asked[:, chosen]
    return Labels(tuple(names), reading.rows_at(chosen), of_rows & (answers[:, chosen] == 1), of_rows)


def answered(training: Labels, held: Labels) -> list[str]:
    """The questions that still have answers of either kind in both, once special tokens and outliers are left out."""

    def both(labels: Labels) -> Tensor:
        return (labels.asked & labels.true).any(1) & (labels.asked & ~labels.true).any(1)

    return [name for name, has in zip(training.names, (both(training) & both(held)).tolist(), strict=True) if has]


@dataclass(frozen=True, eq=False)
class Asked:
    """Questions at one site, and how well other things than a dictionary answer them."""

    training: Labels
    held: Labels
    component: Probed
    channel: Probed
    labels_alone: Sequence[float]

    @classmethod
    def of(cls, split: Split, readings: tuple[Reading, Reading], basis: Basis) -> "Asked | None":
        """The questions of `split` that have enough answers, on its two texts as read; `basis` is a PCA of the site.

        None where no question has.
        """

        def both(names: Sequence[str]) -> tuple[Labels, Labels]:
            return labels_at(readings[0], split[0], names, MOST), labels_at(readings[1], split[1], names)

        if not (names := kept(*split)) or not (names := answered(*both(names))):
            return None
        training, held = both(names)
        component, channel = (probe(read, training, held) for read in (basis.encode, lambda x: x))
        return cls(training, held, component, channel, entropies(training, held))

    def of_dictionary(self, dictionary: Dictionary) -> Probed:
        """Its best latent for each question."""
        return probe(before_activation(dictionary), self.training, self.held)

    def tasks(self, probed: Probed) -> list[ProbeTask]:
        """Each question with what a dictionary, and the others, make of it."""
        true = self.held.asked & self.held.true
        return [
            ProbeTask(
                name,
                n_true=int(true[task].sum()),
                n_tokens=int(self.held.asked[task].sum()),
                latent=int(probed.column[task]),
                loss=estimate_from(probed.loss[task].item(), probed.resamples[task]),
                component=self.component.loss[task].item(),
                channel=self.channel.loss[task].item(),
                labels_alone=self.labels_alone[task],
            )
            for task, name in enumerate(self.held.names)
        ]
