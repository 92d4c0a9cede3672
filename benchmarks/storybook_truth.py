"""What is true of every token of `storybook`'s documents, as masks to hold features against.

The grammar writes each token with what it is and what is open before it, so that a label needs no opinion.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_core.model.language_model import LanguageModel
from sae_core.model.padding import pad
from sae_core.storybook.grammar import Grammar
from sae_core.storybook.measure import HELD_OUT_SEED
from sae_core.storybook.page import CLOSING, END, NAMES, Token, female

BRACKETS = ("(", "[", "{")
Predicate = Callable[[Token], bool]


@dataclass(frozen=True, eq=False)
class Truth:
    """Documents and their labels. Rows start with `END` and are padded with it; no label holds there."""

    tokens: Int[Tensor, "documents pos"]
    labels: Mapping[str, Bool[Tensor, "documents pos"]]


def labels() -> dict[str, Predicate]:
    """What can be said of a token, by kind: `open`, `inside`, `close`, `name` and `role`, before the colon."""
    predicates: dict[str, Predicate] = {"open: any bracket": lambda t: t.text in BRACKETS}
    predicates["inside: any bracket"] = lambda t: any(b in t.open for b in BRACKETS)
    predicates["close: any bracket"] = lambda t: t.role == "close" and t.text != '"'
    for mark in CLOSING:
        predicates[f"open: {mark}"] = lambda t, m=mark: t.text == m and t.role != "close"
        predicates[f"inside: {mark}"] = lambda t, m=mark: m in t.open
        predicates[f"innermost: {mark}"] = lambda t, m=mark: t.open[-1:] == m
        predicates[f"close: {CLOSING[mark]}"] = lambda t, m=mark: t.role == "close" and t.open[-1:] == m
    for depth in (1, 2, 3):
        predicates[f"inside: {depth} brackets"] = lambda t, d=depth: sum(b in BRACKETS for b in t.open) == d
    predicates["name: any"] = lambda t: t.text in NAMES
    predicates["name: of a woman"] = lambda t: t.text in NAMES and female(t.text)
    predicates["name: of a man"] = lambda t: t.text in NAMES and not female(t.text)
    for name in NAMES:
        predicates[f"name: {name}"] = lambda t, n=name: t.text == n
    for role in ("subject", "giver", "recipient", "pronoun"):
        predicates[f"role: {role}"] = lambda t, r=role: t.role == r
    return predicates


def truth(model: LanguageModel, n_documents: int, *, seed: int = HELD_OUT_SEED) -> Truth:
    """So many documents, each in a row of its own, cut off at the model's context, with all labels."""
    grammar, rng = Grammar(), random.Random(seed)
    documents = [grammar.document(rng)[: model.n_ctx - 1] for _ in range(n_documents)]
    (end,) = model.to_ids(END)
    vocabulary = {t.text: model.to_ids(t.text)[0] for document in documents for t in document}
    tokens, _ = pad([[end, *(vocabulary[t.text] for t in document)] for document in documents], fill=end)
    masks = {}
    for label, holds in labels().items():
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        for row, document in enumerate(documents):
            mask[row, 1 : len(document) + 1] = torch.tensor([t.text != END and holds(t) for t in document])
        masks[label] = mask
    return Truth(tokens, masks)
