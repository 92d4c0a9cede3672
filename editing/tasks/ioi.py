"""Indirect object identification (Wang et al. 2022): "John and Mary went to the store. John gave a book to" -> Mary.

Three corruptions. `io`: the indirect object alone becomes a third name, wherever it stands; the answers are
(clean IO, corrupted IO). `swap`: the two names swap roles, the second mention of the subject becoming the
indirect object (ABB -> ABA); the answers are (IO, S). `abc`: the second mention of the subject becomes a third
name, so that nothing says which of the first two is due; the answers are (IO, S). (Wang et al. draw all three
names anew; here the first two stay, so that one token differs.) The model's own score is that of IO against S.

Each half of the prompts is ABBA, half BABA: 15 sentences are the 15 + 15 templates of the literature. Both
orders of a sentence belong to one split and are one group of a bootstrap.

A model that has the words gets the published form: 15 sentences, 99 names (those of one token), 8 places,
8 objects. Any other gets the small form, of commoner words, and of these what it has.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from editing.tasks import names
from editing.tasks.pairs import END, PATIENCE, Mention, PromptPairs, TextPair, as_tokens
from editing.tasks.words import BY_TASK
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel

_WORDS = BY_TASK["ioi"]
PUBLISHED, PUBLISHED_PLACES, PUBLISHED_GIFTS = (_WORDS[f"published{part}"] for part in ("", "_places", "_gifts"))
TEMPLATES, PLACES, GIFTS = (_WORDS[part] for part in ("templates", "places", "gifts"))
ENOUGH = 32
"""Published names that must be single tokens for the published form."""


class Corruption(StrEnum):
    """What is changed in the corrupted prompt."""

    IO = "io"
    SWAP = "swap"
    ABC = "abc"


class Role(StrEnum):
    """The tokens of a prompt that the literature names; corrupted prompts have them at the same places."""

    IO = "IO"
    """The indirect object."""
    S1 = "S1"
    """The subject, where it is first named."""
    S2 = "S2"
    """The subject again (in the corrupted prompts of `swap` and `abc` another name)."""
    END = END
    """The last token, where the answer is due."""


@dataclass(frozen=True)
class IOITask:
    """The words of the task that a model can use, divided into selection and test."""

    names: dict[str, list[str]]
    templates: dict[str, list[str]]
    words: Mapping[str, Sequence[str]]
    """What fills the slots `place` and `gift`."""
    form: str
    """`published` or `small`."""
    shared: tuple[str, ...]
    """What selection and test have in common of names and templates; empty where nothing had to be shared."""
    notes: tuple[str, ...] = ()
    """What is left out of the task for this model, in words."""

    @classmethod
    def of(cls, model: LanguageModel) -> "IOITask":
        """The task in `model`'s vocabulary; raises `UserError` if it has fewer than three usable names."""
        usable, fused = _usable_names(model, names.PUBLISHED, PUBLISHED)
        sentences = [t.format(A="", B="", S="", place="", gift="") for t in PUBLISHED]
        needed = " ".join((*sentences, *PUBLISHED_PLACES, *PUBLISHED_GIFTS))
        if len(usable) >= ENOUGH and names.known(model, needed):
            form, templates, words = "published", [*PUBLISHED], {"place": PUBLISHED_PLACES, "gift": PUBLISHED_GIFTS}
        else:
            form, everyone = "small", [n for pair in zip(names.FEMALE, names.MALE, strict=True) for n in pair]
            templates, words = _small_form(model)
            usable, fused = _usable_names(model, everyone, templates)
            if len(usable) < 3:
                other = next(name for name in everyone if name not in usable)
                raise UserError(
                    f"{model.name} has only {len(usable)} of the task's names as single tokens in the templates; "
                    f"IOI needs 3 ({other!r}, for one, is not one there)"
                )
        shared = []
        if len(usable) >= 8:
            # in turn two by two: in the small form `usable` alternates female and male, and both halves need both
            turns = {"selection": (0, 1), "test": (2, 3)}
            divided = {split: [x for i, x in enumerate(usable) if i % 4 in turn] for split, turn in turns.items()}
        else:
            shared.append("names")
            divided = {"selection": usable, "test": usable}
        if len(templates) < 2:
            shared.append("templates")
        halves = {"selection": templates[0::2], "test": templates[1::2] or templates}
        note = f"left out, since the tokenizer joins them with what stands beside them: {', '.join(fused)}"
        return cls(divided, halves, words, form, tuple(shared), (note,) if fused else ())

    def pairs(
        self, model: LanguageModel, corruption: Corruption, split: str, n: int, *, seed: int, prepend_bos: bool = True
    ) -> PromptPairs:
        """`n` distinct pairs of one split, or as many as its words allow."""
        rng = random.Random(f"{seed}/{corruption}/{split}")
        pairs: dict[str, TextPair] = {}
        misses = 0
        while len(pairs) < n and misses < PATIENCE:
            first, second, third = rng.sample(self.names[split], 3)
            abba = len(pairs) % 2 == 0
            io, subject = (first, second) if abba else (second, first)
            words = {slot: rng.choice(choices) for slot, choices in self.words.items()}
            template = rng.choice(self.templates[split])
            text = template.format(A=first, B=second, S=subject, **words)
            if corruption is Corruption.IO:
                a, b = (third, second) if abba else (first, third)
                other, foil = template.format(A=a, B=b, S=subject, **words), third
            else:
                again = io if corruption is Corruption.SWAP else third
                other, foil = template.format(A=first, B=second, S=again, **words), subject
            misses = misses + 1 if text in pairs else 0
            roles = ((Role.IO, io, 0), (Role.S1, subject, 0), (Role.S2, subject, 1))
            mentions = tuple(Mention(role, f" {name}", nth) for role, name, nth in roles)
            pairs.setdefault(text, TextPair(text, other, f" {io}", f" {foil}", f" {subject}", template, mentions))
        return as_tokens(model, f"ioi-{corruption}", list(pairs.values()), prepend_bos=prepend_bos)


def _small_form(model: LanguageModel) -> tuple[list[str], dict[str, list[str]]]:
    """The templates and words of the small form that a model knows; raises `UserError` if one kind is missing."""
    words = {
        slot: [word for word in choices if names.known(model, word)]
        for slot, choices in (("place", PLACES), ("gift", GIFTS))
    }
    empty = {"A": "", "B": "", "S": "", "place": "", "gift": ""}
    templates = [template for template in TEMPLATES if names.known(model, template.format(**empty))]
    if not (templates and all(words.values())):
        text = " ".join((TEMPLATES[0].format(**empty), *PLACES, *GIFTS))
        unknown = names.unknown_word(model, text)
        raise UserError(f"{model.name} does not know the words of the IOI templates ({unknown!r}, for one)")
    return templates, words


def _usable_names(model: LanguageModel, people: Sequence[str], templates: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names that are one token in every place of every template, and those that are only outside of them.

    A tokenizer may join a name with a comma or a stop beside it. Each name is tried at both places, once as the
    subject, who stands twice.
    """
    usable, fused = [], []
    for name in names.single_token(model, people):
        (token,) = model.continuation_ids("Then", f" {name}")
        other = "Tom" if name != "Tom" else "Mary"
        texts = [
            (template.format(A=a, B=b, S=name, place="store", gift="ring"), 2)
            for template in templates
            for a, b in ((name, other), (other, name))
        ]
        stands = all(model.to_ids(text).count(token) == times for text, times in texts)
        (usable if stands else fused).append(name)
    return usable, fused
