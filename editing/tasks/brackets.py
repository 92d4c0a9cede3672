"""Closing brackets and quotes: "def run(x):\\n y = [i, j" -> "]", where one must close.

The corrupted prompt is as long and has no bracket or quote open where the clean one ends: the bracket became a
comma or a line of its own, or it stands one line above, closed. The answers are the closing bracket and a token
that may follow then. Code is indented by one space, which costs most tokenizers no token.

Templates of code and prose, with round, square and curly brackets and double quotes, every kind in both splits;
selection and test share no template and, where there are words enough, none of the words that fill them.
"""

import random
import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from typing import NamedTuple

from editing.tasks import names
from editing.tasks.pairs import PATIENCE, PromptPairs, TextPair, as_tokens
from editing.tasks.words import BY_TASK
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel


class BracketTemplate(NamedTuple):
    """A prompt with an open bracket, one as long without, and what follows each.

    `<var>` is a word of that class, `<var2>` another one.
    """

    clean: str
    corrupted: str
    answer: str
    foil: str


TEMPLATES = tuple(BracketTemplate(**template) for template in BY_TASK["brackets"]["templates"])
"""In turn for selection and test: every second one of each kind."""
WORDS = BY_TASK["brackets"]["words"] | {
    "name": [name for pair in zip(names.FEMALE, names.MALE, strict=True) for name in pair]
}
_SLOT = re.compile(r"<([a-z]+)(\d*)>")


@dataclass(frozen=True)
class BracketTask:
    """The templates and words that a model can use, divided into selection and test."""

    templates: dict[str, list[BracketTemplate]]
    words: dict[str, dict[str, list[str]]]
    """By split, then by class."""
    shared: tuple[str, ...]
    """What selection and test have in common; empty where nothing had to be shared."""

    @classmethod
    def of(cls, model: LanguageModel) -> "BracketTask":
        """The task in `model`'s vocabulary; raises `UserError`, naming the trouble, if no template fits it."""
        words = {kind: [word for word in everyone if names.known(model, word)] for kind, everyone in WORDS.items()}
        usable, trouble = {}, ""
        for half, chosen in (("selection", TEMPLATES[0::2]), ("test", TEMPLATES[1::2])):
            usable[half] = []
            for template in chosen:
                try:
                    _fits(model, template, words)
                    usable[half].append(template)
                except UserError as error:
                    trouble = trouble or str(error)
        shared = []
        if not all(usable.values()):
            everything = usable["selection"] + usable["test"]
            if not everything:
                raise UserError(f"no prompt with a bracket fits {model.name}: {trouble}")
            usable = {"selection": everything[0::2], "test": everything[1::2] or everything}
            if len(everything) < 2:
                shared.append("templates")
        halves = {"selection": {}, "test": {}}
        for kind, known in words.items():
            needs = max(_distinct(template, kind) for template in TEMPLATES)
            enough = len(known) >= 4 * needs
            if not enough and any(_distinct(t, kind) for half in usable.values() for t in half):
                shared.append(f"words for <{kind}>")
            # in turn two by two, since names alternate between female and male
            for half, turn in (("selection", (0, 1)), ("test", (2, 3))):
                halves[half][kind] = [w for i, w in enumerate(known) if i % 4 in turn] if enough else known
        return cls(usable, halves, tuple(shared))

    def pairs(self, model: LanguageModel, split: str, n: int, *, seed: int, prepend_bos: bool = True) -> PromptPairs:
        """`n` distinct pairs of one split, or as many as its words allow; every template about as often."""
        rng = random.Random(f"{seed}/brackets/{split}")
        pairs: dict[str, TextPair] = {}
        misses = 0
        for template in cycle(self.templates[split]):
            if len(pairs) == n or misses == PATIENCE:
                break
            pair = _fill(template, self.words[split], rng)
            misses += 1
            if pair.clean not in pairs:
                with suppress(UserError):  # other words may fit: "index" can be one token and "(index" not two
                    pair.ids(model)
                    pairs[pair.clean], misses = pair, 0
        return as_tokens(model, "brackets", list(pairs.values()), prepend_bos=prepend_bos)


def _distinct(template: BracketTemplate, kind: str) -> int:
    """How many different words of a class the template takes."""
    return len({slot for slot in _SLOT.findall("".join(template)) if slot[0] == kind})


def _fill(template: BracketTemplate, words: dict[str, list[str]], rng: random.Random) -> TextPair:
    """The template with words drawn for its slots, the same ones in all four texts."""
    slots = dict.fromkeys(_SLOT.findall("".join(template)))
    drawn = {kind: iter(rng.sample(words[kind], _distinct(template, kind))) for kind, _ in slots}
    chosen = {slot: next(drawn[slot[0]]) for slot in slots}
    clean, corrupted, answer, foil = (_SLOT.sub(lambda slot: chosen[slot.groups()], text) for text in template)
    return TextPair(clean, corrupted, answer, foil, foil, template)


def _fits(model: LanguageModel, template: BracketTemplate, words: dict[str, list[str]]) -> None:
    """Raise the `UserError` of the last try if the template fits with none of some words."""
    for kind in {kind for kind, _ in _SLOT.findall("".join(template))}:
        if len(words[kind]) < _distinct(template, kind):
            other = next((word for word in WORDS[kind] if word not in words[kind]), "none")
            raise UserError(f"{model.name} knows too few words for <{kind}>: {other!r}, for one, has no token")
    rng = random.Random(0)
    for tries_left in reversed(range(8)):
        try:
            _fill(template, words, rng).ids(model)
            return
        except UserError:
            if not tries_left:
                raise
