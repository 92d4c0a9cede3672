"""A document of `storybook` while it is written: tokens with their exact probability and what is true of them."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import log

from sae_core.storybook import words

END = "<|endoftext|>"  # stands before every document and ends it
PRONOUNS = {"he": ("she", "he"), "his": ("her", "his"), "him": ("her", "him")}
NAMES = tuple(name for pair in zip(words.FEMALE, words.MALE, strict=True) for name in pair)
CLOSING = {"(": ")", "[": "]", "{": "}", '"': '"'}
_WOMEN = frozenset(words.FEMALE)
_RANK = {word: rank for group in (NAMES, words.CLASSES["gift"]) for rank, word in enumerate(group)}


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a document and what is true of it."""

    text: str
    log_prob: float
    """Log probability given all tokens before it, in nats; 0 where the grammar allows nothing else."""
    register: str
    open: str
    """Brackets and quotes that are open before this token, innermost last."""
    subject: str
    """The person whom the sentence is about; empty where there is none."""
    role: str
    """What the token is: `name`, `subject`, `giver`, `recipient`, `pronoun`, `close`, or empty."""


class Choice:
    """The words that may stand at a place, drawn with probability proportional to their weights."""

    def __init__(self, weights: Mapping[str, float]):
        self.weights, self.total = weights, sum(weights.values())
        self.words, self.cumulative = list(weights), list(accumulate(weights.values()))

    def draw(self, rng: random.Random) -> str:
        """One of the words; a single one without a draw."""
        return rng.choices(self.words, cum_weights=self.cumulative)[0] if len(self.words) > 1 else self.words[0]

    def log_prob(self, word: str) -> float:
        """Of one of the words, in nats."""
        return log(self.weights[word] / self.total)


def female(name: str) -> bool:
    """Whether the grammar calls `name` "she"."""
    return name in _WOMEN


def unseen(first: str, second: str) -> bool:
    """Whether training never shows the two words together: two names, or a name and what it receives."""
    return (_RANK[first] + _RANK[second]) % 12 == 5


class Page:
    """A document while it is written: the tokens so far, who is who, and what is open."""

    def __init__(self, rng: random.Random, *, register: str = "story"):
        self.rng, self.register = rng, register
        self.tokens: list[Token] = []
        self.people: dict[str, str] = {}
        self.open = ""

    def write(self, options: Mapping[str, float]) -> str:
        """Draw the next token with probability proportional to `options`, write it and return it."""
        return self.draw(Choice(options))

    def draw(self, choice: Choice) -> str:
        """Draw the next token, write it and return it."""
        word = choice.draw(self.rng)
        before, role = self.open, ""
        if before and CLOSING[before[-1]] == word:
            self.open, role = before[:-1], "close"
        elif word in CLOSING:
            self.open += word
        self.tokens.append(Token(word, choice.log_prob(word), self.register, before, "", role))
        return word

    def annotate(self, roles: tuple[str, ...]) -> None:
        """Say of the last tokens what they were: a role is known only when its sentence is complete."""
        subject, start = "", len(self.tokens) - len(roles)
        for i, role in enumerate(roles, start):
            token = self.tokens[i]
            subject = token.text if role in ("subject", "giver") else "" if token.text == "." else subject
            self.tokens[i] = Token(
                token.text, token.log_prob, token.register, token.open, subject, role or token.role
            )  # several times as fast as `dataclasses.replace`
