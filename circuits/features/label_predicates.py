"""What a label can say of where a feature is active: predicates of a text, each true or false at every token.

Those of the characters (`predicates.py`); on the storybook the classes of its grammar's words; and such as are made for
a feature from the tokens on which it is active: the token here, before or after is one of a few; or one stands shortly
before. Any of them may hold together with one of the first two kinds.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuits.features.predicates import next_predicate, predicates
from sae_core.model.language_model import LanguageModel
from sae_core.storybook import words

NEAR = 8
"""Tokens before that count as shortly before."""
NAMED = 4
"""Tokens that a label names, at most."""
LONGEST = 12
"""Tokens of a list, at most: a longer one says nothing to a reader."""


class LabelText:
    """Contexts as labels read them; places are counted through all contexts, `context * length + position`."""

    def __init__(self, model: LanguageModel, contexts: Int[Tensor, "contexts pos"]):
        self.model, self.contexts = model, contexts.cpu()

    @cached_property
    def truths(self) -> dict[str, Bool[Tensor, "places"]]:
        """The predicates that are tried on every feature, by name: of the characters, and of the grammar's words."""
        truths = predicates(self.model, self.contexts) | word_classes(self.model, self.contexts)
        return {name: truth.flatten().cpu() for name, truth in truths.items()}

    @cached_property
    def table(self) -> Bool[Tensor, "predicates places"]:
        """The same as rows."""
        return torch.stack(list(self.truths.values()))

    @cached_property
    def n_true(self) -> dict[str, int]:
        """On how many tokens each is true."""
        return dict(zip(self.truths, self.table.sum(1).tolist(), strict=True))

    @cached_property
    def around(self) -> Int[Tensor, "offsets places"]:
        """The tokens from `NEAR` places before to one after each content token; -1 outside content."""
        content, length = self.model.content(self.contexts), self.contexts.shape[1]
        padded = torch.nn.functional.pad(self.contexts.masked_fill(~content, -1), (NEAR, 1), value=-1)
        shifted = torch.stack([padded[:, k : k + length] for k in range(NEAR + 2)])
        return shifted.masked_fill(~content, -1).flatten(1)

    @cached_property
    def counts(self) -> Int[Tensor, "offsets vocab"]:
        """How often each token stands at each place around a content token."""
        return torch.stack([torch.bincount(row[row >= 0], minlength=self.model.n_vocab) for row in self.around])


@runtime_checkable
class LabelPredicate(Protocol):
    """A predicate with the words that a label has for it."""

    def text(self, model: LanguageModel) -> str:
        """What a label says."""
        ...

    def at(self, text: LabelText, places: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
        """Where it is true among the places."""
        ...

    def n_true(self, text: LabelText) -> int:
        """On how many tokens of the text it is true."""
        ...


@dataclass(frozen=True)
class Usual:
    """A predicate that is tried on every feature, by its name."""

    name: str

    def text(self, model: LanguageModel) -> str:
        """`inside ( …`, `has "("`, `before ")"`, or the name."""
        if self.name.startswith("inside "):
            return f"{self.name} …"
        if self.name.startswith("has ") and len(self.name) == len("has ("):
            return f"has {quoted(self.name[-1])}"
        begins = next_predicate("")
        return f"before {quoted(self.name.removeprefix(begins))}" if self.name.startswith(begins) else self.name

    def at(self, text: LabelText, places: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
        """Where it is true among the places."""
        return text.truths[self.name][places]

    def n_true(self, text: LabelText) -> int:
        """On how many tokens of the text it is true."""
        return text.n_true[self.name]


@dataclass(frozen=True)
class TokensAt:
    """One of some tokens stands here (offset 0), before (-1), or after (1)."""

    offset: int
    tokens: tuple[int, ...]

    def text(self, model: LanguageModel) -> str:
        """`on " Mary" " Laura" (+3)`, `after "("`, `before ")"`."""
        where = {-1: "after", 0: "on", 1: "before"}[self.offset]
        return f"{where} {quoted_tokens(model, self.tokens)}"

    def at(self, text: LabelText, places: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
        """Where it is true among the places."""
        return torch.isin(text.around[NEAR + self.offset][places], torch.tensor(self.tokens))

    def n_true(self, text: LabelText) -> int:
        """On how many tokens of the text it is true."""
        return int(text.counts[NEAR + self.offset][list(self.tokens)].sum())


@dataclass(frozen=True)
class ShortlyAfter:
    """A token stands among the `NEAR` before."""

    token: int

    def text(self, model: LanguageModel) -> str:
        """`"(" … _`."""
        return f"{quoted(model.token_text(self.token))} … _"

    def at(self, text: LabelText, places: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
        """Where it is true among the places."""
        return (text.around[:NEAR, places] == self.token).any(0)

    def n_true(self, text: LabelText) -> int:
        """On how many tokens of the text it is true."""
        return int((text.around[:NEAR] == self.token).any(0).sum())


@dataclass(frozen=True)
class Together:
    """Two predicates at once."""

    first: LabelPredicate
    second: Usual

    def text(self, model: LanguageModel) -> str:
        """`a variable, inside ( …`."""
        return f"{self.first.text(model)}, {self.second.text(model)}"

    def at(self, text: LabelText, places: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
        """Where it is true among the places."""
        return self.first.at(text, places) & self.second.at(text, places)

    def n_true(self, text: LabelText) -> int:
        """On how many tokens of the text it is true."""
        return int(self.at(text, torch.arange(text.contexts.numel())).sum())


def word_classes(
    model: LanguageModel, contexts: Int[Tensor, "contexts pos"]
) -> dict[str, Bool[Tensor, "contexts pos"]]:
    """The classes of words of the storybook's grammar; none for a model that has other tokens."""
    ids = getattr(model.tokenizer, "get_vocab", dict)()
    if not set(words.FEMALE) <= ids.keys():
        return {}
    classes = {"a woman's name": words.FEMALE, "a man's name": words.MALE, "a name": words.FEMALE + words.MALE}
    classes |= {"a function": words.UNARY + words.BINARY + words.CLASSES["func"], "a variable": words.CLASSES["var"]}
    classes |= {"a variable or number": words.CLASSES["var"] + words.CLASSES["num"]}
    classes |= {f"a word of {name!r}": group for name, group in words.CLASSES.items() if name not in ("func", "var")}
    return {name: torch.isin(contexts, torch.tensor([ids[word] for word in group])) for name, group in classes.items()}


def quoted(token: str) -> str:
    """A token's text between quotes, with its spaces; line breaks as arrows."""
    return '"' + token.replace("\n", "↵") + '"'


def quoted_tokens(model: LanguageModel, tokens: tuple[int, ...]) -> str:
    """The first `NAMED` tokens, and how many more there are."""
    more = [f"(+{len(tokens) - NAMED})"] * (len(tokens) > NAMED)
    return " ".join([*(quoted(model.token_text(token)) for token in tokens[:NAMED]), *more])


def token_predicates(text: LabelText, places: Int[Tensor, "n"]) -> list[LabelPredicate]:
    """Predicates of tokens that fit the places where a feature is active, those that say less first.

    The tokens that are most frequent here, after and before; such as stand shortly before more often than elsewhere;
    and the set of tokens here that has the largest F1 (`explanations.token_tables`).
    """
    frequent = {offset: _frequent(text.around[NEAR + offset][places]) for offset in (0, 1, -1)}
    candidates: list[LabelPredicate] = []
    for n in range(1, NAMED + 1):
        candidates += [TokensAt(offset, tokens[:n]) for offset, tokens in frequent.items() if len(tokens) >= n]
    near = text.around[:NEAR, places]
    counts = torch.bincount(near[near >= 0], minlength=text.model.n_vocab) / max(1, len(places))
    surplus = counts - text.counts[:NEAR].sum(0) / max(1, int(text.counts[NEAR].sum()))
    candidates += [ShortlyAfter(token) for token in surplus.topk(min(2, len(surplus))).indices.tolist()]
    return [*candidates, TokensAt(0, _best_set(text, places))]


def _frequent(tokens: Int[Tensor, "n"]) -> tuple[int, ...]:
    values, counts = tokens[tokens >= 0].unique(return_counts=True)
    return tuple(values[counts.argsort(descending=True, stable=True)[:NAMED]].tolist())


def _best_set(text: LabelText, places: Int[Tensor, "n"]) -> tuple[int, ...]:
    """The tokens of largest F1, the most frequent of them first."""
    # Tokens enter by the share of their occurrences that are among the places: F1 = 2 hits / (occurrences + n).
    tokens, counts = text.around[NEAR][places].unique(return_counts=True)
    seen = text.counts[NEAR][tokens]
    order = (counts / seen).argsort(descending=True, stable=True)
    f1 = 2 * counts[order].cumsum(0) / (seen[order].cumsum(0) + len(places))
    kept = order[: int(f1[:LONGEST].argmax()) + 1]
    return tuple(tokens[kept[counts[kept].argsort(descending=True, stable=True)]].tolist())
