"""Pronoun prediction: "Lily was tired because" -> she; names of the two classes in equal number.

Three forms: she or he; her or his ("Lily took" -> her); and the one that Cunningham et al. 2023 test on, who choose
an edit on one question about a name and test it on another one as well: "Lily went to the store, and" -> she. An edit
that is chosen on the first form can be tested on the other two. No prompt holds a pronoun: only the name tells; what
comes before is an opening, where the source shows examples of both pronouns.

Names may take several tokens; the pronouns may not. The splits share no names and no templates, a template
being an opening with a sentence; every opening and every sentence occurs in each split.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from editing.tasks import names
from editing.tasks.pairs import PromptPairs, TextPair, answer_id, as_tokens, numbered
from editing.tasks.words import BY_TASK
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.model.padding import pad

# Each name stands twice: where it is introduced, and as the subject of the sentence that needs the pronoun.
OPENINGS, SENTENCES = BY_TASK["pronouns"]["openings"], BY_TASK["pronouns"]["sentences"]
POSSESSIVE_SENTENCES = BY_TASK["pronouns"]["possessive_sentences"]
STORE_SENTENCES = BY_TASK["pronouns"]["store_sentences"]


class Form(StrEnum):
    """Which pronouns are due."""

    SUBJECT = "he"
    POSSESSIVE = "his"
    STORE = "he, at the store"
    """she or he, in the words of the source's transfer task."""


class Split(StrEnum):
    """What prompts are for: to choose an edit, to check the choice on other names, to report."""

    SELECTION = "selection"
    CHECK = "check"
    TEST = "test"


# Names are dealt out in turn, half of them to the test. Every opening goes with every sentence, and the
# combinations are dealt out along the diagonals, so that each split has all openings and all sentences.
_NAMES = {Split.SELECTION: slice(0, None, 4), Split.CHECK: slice(2, None, 4), Split.TEST: slice(1, None, 2)}
_WORDS = {Form.SUBJECT: ("she", "he"), Form.POSSESSIVE: ("her", "his"), Form.STORE: ("she", "he")}
_SENTENCES = {Form.SUBJECT: SENTENCES, Form.POSSESSIVE: POSSESSIVE_SENTENCES, Form.STORE: STORE_SENTENCES}
_NAME = {Form.SUBJECT: "pronouns", Form.POSSESSIVE: "possessives", Form.STORE: "pronouns at the store"}
_GROUPS = {"female": names.FEMALE, "male": names.MALE}
PRONOUNS = ("she", "he", "her", "his", "him", "herself", "himself", "hers", "She", "He", "Her", "His")


class PronounTemplate(NamedTuple):
    """An opening with a sentence."""

    text: str
    sentence: int
    """Which of the form's sentences it ends in."""


def templates(split: Split, form: Form = Form.SUBJECT) -> list[PronounTemplate]:
    """The templates of one split."""
    turn, ends = list(Split).index(split), _SENTENCES[form]
    every = [(i, j) for i in range(len(OPENINGS)) for j in range(len(ends))]
    return [PronounTemplate(f"{OPENINGS[i]} {ends[j]}", j) for i, j in every if (i + j) % 3 == turn]


@dataclass(frozen=True, eq=False)
class PronounPrompts:
    """Prompts after which one of two pronouns is due."""

    tokens: Int[Tensor, "batch pos"]
    end: Int[Tensor, "batch"]
    """Position of the last prompt token, where the pronoun is predicted."""
    female: Bool[Tensor, "batch"]
    she: int
    """Token of the female pronoun of the form: she, or her."""
    he: int
    """Token of the male one: he, or his."""
    texts: tuple[str, ...]
    sentence: Int[Tensor, "batch"]
    """Which of the form's sentences each prompt ends in."""
    groups: Int[Tensor, "batch"]
    """The template of each prompt: prompts that share one are not independent."""
    name: Int[Tensor, "batch"]
    """The name of each prompt: prompts that share one are not independent either."""
    mentions: Bool[Tensor, "batch pos"]
    """The last token of each mention of the name."""

    def __len__(self) -> int:
        return len(self.end)


class _Case(NamedTuple):
    name: str
    template: PronounTemplate

    @property
    def text(self) -> str:
        return self.template.text.format(N=self.name)


def _cases(model: LanguageModel, splits: Sequence[Split], form: Form) -> dict[str, list[_Case]]:
    """Every prompt of the splits in this vocabulary, by class.

    Raises `UserError`, naming a word, if a pronoun is not one token, or words of the task are unknown.
    """
    usable = {s: [t for t in templates(s, form) if names.known(model, t.text.format(N="Lily"))] for s in splits}
    for split, of_split in usable.items():
        if not of_split:
            word = names.unknown_word(model, templates(split, form)[0].text.format(N="Lily"))
            raise UserError(f"{model.name} does not know the words of the pronoun task ({word!r}, for one)")
    example = usable[splits[0]][0].text.format(N="Lily")
    for word in _WORDS[form]:
        if not names.known(model, word) or len(model.continuation_ids(example, f" {word}")) != 1:
            raise UserError(f"{word!r} is not a single token of {model.name}; the pronoun task needs it to be one")
    known = {group: [x for x in everyone if names.known(model, x)] for group, everyone in _GROUPS.items()}
    for group, people in known.items():
        if len(people) < 4:
            other = next((x for x in _GROUPS[group] if x not in people), "none")
            raise UserError(f"{model.name} knows too few of the task's names, {other!r} not; it needs 4 of each class")
    return {
        group: [_Case(x, t) for split in splits for x in people[_NAMES[split]] for t in usable[split]]
        for group, people in known.items()
    }


def pronoun_prompts(
    model: LanguageModel,
    splits: Sequence[Split],
    n: int,
    *,
    seed: int,
    prepend_bos: bool = True,
    form: Form = Form.SUBJECT,
) -> PronounPrompts:
    """`n` prompts of some splits taken together, or as many as their words allow, half of each class.

    Raises `UserError` if a pronoun of the form is not one token here, or the words of the task are unknown.
    """
    rng = random.Random(f"{seed}/{_NAME[form]}/{'/'.join(splits)}")
    cases = _cases(model, splits, form)
    n_each = min(n // 2, *map(len, cases.values()))
    if n_each < 1:
        raise UserError(f"the pronoun task needs at least 2 prompts, one of each class; got {n}")
    drawn = [(case, group == "female") for group, of_class in cases.items() for case in rng.sample(of_class, n_each)]
    drawn = rng.sample(drawn, len(drawn))  # any prefix is about balanced
    texts = tuple(case.text for case, _ in drawn)
    rows = [model.with_bos(ids, prepend=prepend_bos) for ids in model.all_ids(texts)]
    tokens, lengths = pad(rows, fill=model.bos_id or 0)
    if tokens.shape[1] > model.n_ctx:
        raise UserError(f"pronoun prompts take {tokens.shape[1]} tokens; {model.name} reads {model.n_ctx}")
    she, he = (answer_id(model, texts[0], f" {word}") for word in _WORDS[form])
    female = torch.tensor([is_female for _, is_female in drawn])
    sentence = torch.tensor([case.template.sentence for case, _ in drawn])
    groups, people = numbered(case.template for case, _ in drawn), numbered(case.name for case, _ in drawn)
    mentions = torch.zeros_like(tokens, dtype=torch.bool)
    for row, ends in zip(mentions, _ends_of_mentions(model, [case for case, _ in drawn], prepend_bos), strict=True):
        row[ends] = True
    return PronounPrompts(tokens, lengths - 1, female, she, he, texts, sentence, groups, people, mentions)


def _ends_of_mentions(model: LanguageModel, cases: Sequence[_Case], prepend_bos: bool) -> Iterator[list[int]]:
    """Where each mention of the name ends in each case: the text up to there has so many tokens."""
    heads = []
    for case in cases:
        pieces = case.template.text.split("{N}")
        heads.append(["{N}".join(pieces[:i]).format(N=case.name) + case.name for i in range(1, len(pieces))])
    ids = iter(model.all_ids([head for of_case in heads for head in of_case]))
    for of_case in heads:
        yield [len(model.with_bos(next(ids), prepend=prepend_bos)) - 1 for _ in of_case]


def pronoun_pairs(
    model: LanguageModel,
    splits: Sequence[Split],
    n: int,
    *,
    seed: int,
    prepend_bos: bool = True,
    form: Form = Form.SUBJECT,
) -> PromptPairs:
    """About `n` prompts, each beside itself with a name of the other class that is as long.

    Half of the clean prompts are of each class, so that their number is even; prompts for which there is no such
    name are left out.
    """
    rng = random.Random(f"{seed}/{_NAME[form]}-pairs/{'/'.join(splits)}")
    cases, words = _cases(model, splits, form), dict(zip(_GROUPS, _WORDS[form], strict=True))
    pairs_of: dict[str, list[TextPair]] = {}
    for group, other in (("female", "male"), ("male", "female")):
        partners: dict[tuple[PronounTemplate, int], list[str]] = {}
        for case, ids in zip(cases[other], model.all_ids([case.text for case in cases[other]]), strict=True):
            partners.setdefault((case.template, len(ids)), []).append(case.text)
        pairs_of[group] = []
        for case in rng.sample(cases[group], len(cases[group])):
            if len(pairs_of[group]) == max(1, n // 2):
                break
            if as_long := partners.get((case.template, len(model.to_ids(case.text)))):
                right, wrong = f" {words[group]}", f" {words[other]}"
                pairs_of[group].append(TextPair(case.text, rng.choice(as_long), right, wrong, wrong, case.template))
    pairs = [pair for both in zip(*pairs_of.values(), strict=False) for pair in both]
    if not pairs:
        raise UserError(f"{_NAME[form]}: no two names of the two classes are equally long in {model.name}")
    return as_tokens(model, _NAME[form], pairs, prepend_bos=prepend_bos)


def pronoun_ids(model: LanguageModel) -> list[int]:
    """Single tokens that are pronouns of either class: damage is measured away from them."""
    ids_of_pronouns = set()
    for word in PRONOUNS:
        for ids in (model.continuation_ids("Then", f" {word}"), model.to_ids(word)):
            if len(ids) == 1 and names.known(model, word):
                ids_of_pronouns.add(ids[0])
    return sorted(ids_of_pronouns)
