"""The grammar of `storybook`: documents whose every token comes with its exact probability and the truth.

Every choice is made at the token where texts diverge: `Page.write` draws one token from a distribution
over tokens and keeps -log of its probability. Sentences that begin alike are therefore merged into a
trie first (`State`), and what is summed along a document is its exact surprise: the loss that no
language model of this text can beat on average.

Some combinations are never written (`unseen`): pairs of names, names with gifts, and whole sentences.
They are kept for measuring whether the model learned the rule or the examples.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
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
        total = sum(options.values())
        word = self.rng.choices(tuple(options), tuple(options.values()))[0] if len(options) > 1 else next(iter(options))
        before, role = self.open, ""
        if before and CLOSING[before[-1]] == word:
            self.open, role = before[:-1], "close"
        elif word in CLOSING:
            self.open += word
        self.tokens.append(Token(word, log(options[word] / total), self.register, before, "", role))
        return word

    def annotate(self, roles: tuple[str, ...]) -> None:
        """Say of the last tokens what they were: a role is known only when its sentence is complete."""
        subject, start = "", len(self.tokens) - len(roles)
        for i, role in enumerate(roles, start):
            token = self.tokens[i]
            subject = token.text if role in ("subject", "giver") else "" if token.text == "." else subject
            self.tokens[i] = replace(token, subject=subject, role=role or token.role)


@dataclass(frozen=True)
class Slot:
    """A place in a sentence that is filled when it is written: `{A}`, `{A.he}`, `{gift/A}`, `{place}`."""

    kind: str
    person: str = ""
    role: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text: str) -> "Slot":
        body, _, role = text.strip("{}").partition(":")
        if body[:1].isupper():
            person, _, pronoun = body.partition(".")
            return cls(pronoun or "person", person, role or ("pronoun" if pronoun else "name"))
        kind, _, person = body.partition("/")
        return cls(kind, person, role)

    def options(self, page: Page, *, only_unseen: bool) -> dict[str, float]:
        """The words that may stand here, with their probabilities."""
        if self.kind in PRONOUNS:
            return {PRONOUNS[self.kind][0 if female(page.people[self.person]) else 1]: 1.0}
        if self.kind == "person":
            if self.person in page.people:
                return {page.people[self.person]: 1.0}
            known = tuple(page.people.values())
            # no three names are pairwise unseen: a new combination is new with the first name
            asked = known[:1] if only_unseen else known
            words_here = [n for n in NAMES if n not in known and all(unseen(n, k) == only_unseen for k in asked)]
        elif self.person:
            receiver = page.people[self.person]
            words_here = [w for w in words.CLASSES[self.kind] if unseen(receiver, w) == only_unseen]
        else:
            words_here = words.CLASSES[self.kind]
        return dict.fromkeys(words_here, 1.0 / len(words_here))


@dataclass
class State:
    """Sentences that may come next, merged into a trie, each leading to another state.

    Every element of a node is a word or a `Slot`; elements of one node never share a word, so that the
    word written says which element it was, and its probability is weight times the slot's own.
    """

    weight: float = 0.0
    children: dict["str | Slot", "State"] = field(default_factory=dict)
    roles: tuple[str, ...] = ()
    next: str | None = None

    def add(self, sentence: str, weight: float, then: str) -> None:
        """Add one sentence with its weight and the name of the state that follows it."""
        words_here = (text.replace("\\n", "\n") for text in sentence.split(" "))
        elements = [Slot.parse(text) if len(text) > 1 and text[0] == "{" else text for text in words_here]
        node = self
        node.weight += weight
        for element in elements:
            assert node.next is None, f"another sentence begins like this one and ends earlier: {sentence}"
            node = node.children.setdefault(element, State())
            node.weight += weight
        assert node.next is None and not node.children, f"sentence has two continuations: {sentence}"
        node.next, node.roles = then, tuple(getattr(element, "role", "") for element in elements)

    def write(self, page: Page, *, only_unseen: bool = False) -> str:
        """Write one sentence on `page`; returns the name of the next state."""
        node = self
        while node.next is None:
            options, owner = {}, {}
            for element, child in node.children.items():
                own = {element: 1.0} if isinstance(element, str) else element.options(page, only_unseen=only_unseen)
                for word, p in own.items():
                    assert word not in options, f"{word!r} may come from two places"
                    options[word], owner[word] = child.weight * p, element
            word = page.write(options)
            element = owner[word]
            if isinstance(element, Slot) and element.kind == "person":
                page.people[element.person] = word
            node = node.children[element]
        page.annotate(node.roles)
        return node.next


def _states() -> dict[str, State]:
    """All states of the prose: which sentences may follow which."""
    states: dict[str, State] = {}

    def add(name: str, sentences: Iterable[str], total: float, then: str) -> None:
        sentences = tuple(sentences)
        for sentence in sentences:
            states.setdefault(name, State()).add(sentence, total / len(sentences), then)

    add("start", words.MEETINGS, 0.28, "scene0")
    add("start", words.PARTINGS, 0.10, "scene1")
    add("start", words.OPENINGS, 0.10, "gift")
    add("start", words.ALONE, 0.14, "alone0")
    add("start", words.LETTER, 0.02, "end")
    add("start", words.RECIPE, 0.03, "recipe")
    add("start", words.WEATHER, 0.03, "weather")
    add("start", words.SCIENCE, 0.03, "science")
    add("start", words.LAW, 0.03, "law")
    add("start", words.MEDICINE, 0.05, "medicine")
    add("start", words.GERMAN, 0.05, "german")
    add("start", ["def {func} ( {var} ) : \\n"], 0.14, "code")
    for i, following in enumerate(("scene1", "scene2", "gift")):
        add(f"scene{i}", words.FILLERS, 0.5, following)
    for giver, receiver in (("A", "B"), ("B", "A")):
        after = f"after{giver}{receiver}"
        for name, weight in (("scene0", 0.25), ("scene1", 0.25), ("scene2", 0.25), ("gift", 0.5)):
            add(name, _cast(words.GIFTS, giver, receiver), weight, after)
        add(after, _cast(words.THANKS, giver, receiver), 0.5, "end")
        add(after, ["Then they went home .", "The end .", "It was a {adj} {day} ."], 0.2, "end")
        add(after, [END], 0.3, "over")
    for i, following in enumerate(("alone1", "alone2", "alone3", "end")):
        add(f"alone{i}", words.PRONOUNS, 0.7, following)
        add(f"alone{i}", words.SCENES, 0.3, following)
    for name, sentences in (
        ("recipe", words.RECIPE),
        ("weather", words.WEATHER),
        ("science", words.SCIENCE),
        ("law", words.LAW),
        ("medicine", words.MEDICINE),
        ("german", words.GERMAN),
    ):
        add(name, sentences, 0.75, name)
        add(name, [END], 0.25, "over")
    add("end", [END], 1.0, "over")
    return states


def _cast(sentences: Iterable[str], giver: str, receiver: str) -> Iterator[str]:
    """`sentences` with the people who play G and R."""
    for text in sentences:
        yield text.replace("{G", "{" + giver).replace("{R", "{" + receiver).replace("/R}", f"/{receiver}}}")


_REGISTERS = {"alone0": "story", "scene0": "story", "scene1": "story", "gift": "story", "end": "letter"}


def _share(total: float, options: Iterable[str]) -> dict[str, float]:
    """`total` divided equally over `options`."""
    options = tuple(options)
    return dict.fromkeys(options, total / len(options))


def write_code(page: Page) -> None:
    """Write the body of a function: assignments and prints, brackets nested up to three deep."""
    variables = words.CLASSES["var"]
    for line in count(1):
        first = page.write({"return": 1.0} if line == 4 else _share(0.6, variables) | {"print": 0.2, "return": 0.2})
        if first == "print":
            page.write({"(": 1.0})
            if page.write({'"': 0.6} | _share(0.4, variables)) == '"':
                page.write(_share(1.0, words.STRINGS))
                if page.write({'"': 0.5} | _share(0.5, words.STRINGS)) != '"':
                    page.write({'"': 1.0})
            page.write({")": 1.0})
        else:
            if first != "return":
                page.write({"=": 1.0})
            _write_expression(page, depth=3)
        page.write({"\n": 1.0})
        if first == "return":
            page.write({END: 1.0})
            return


def _write_expression(page: Page, depth: int) -> None:
    leaf = 1.0 if depth == 0 else 0.4
    options = _share(leaf / 2, words.CLASSES["var"]) | _share(leaf / 2, words.CLASSES["num"])
    if depth:
        options |= _share(0.26, words.UNARY) | _share(0.17, words.BINARY) | {"[": 0.085, "{": 0.085}
    word = page.write(options)
    if word in ("[", "{"):
        _write_expression(page, depth - 1)
        page.write({"," if word == "[" else ":": 1.0})
    elif word in words.UNARY or word in words.BINARY:
        page.write({"(": 1.0})
        if word in words.BINARY:
            _write_expression(page, depth - 1)
            page.write({",": 1.0})
    else:
        return
    _write_expression(page, depth - 1)
    page.write({CLOSING[page.open[-1]]: 1.0})


class Grammar:
    """All documents of `storybook`; `document` draws one."""

    def __init__(self) -> None:
        self.states = _states()
        self.meetings, self.openings, self.gifts = State(), State(), State()
        for sentence in words.UNSEEN_MEETINGS:
            self.meetings.add(sentence, 1.0, "gift")
        for sentence in words.UNSEEN_OPENINGS:
            self.openings.add(sentence, 1.0, "gift")
        for giver, receiver in (("A", "B"), ("B", "A")):
            for sentence in _cast(words.UNSEEN_GIFTS, giver, receiver):
                self.gifts.add(sentence, 1.0, "over")

    def document(self, rng: random.Random) -> list[Token]:
        """Tokens of one document, from its first word to the `END` that closes it."""
        page = Page(rng)
        name = self.states["start"].write(page)
        # the register is named once the first sentence has shown it
        register = _REGISTERS.get(name, name)
        page.register = register
        page.tokens = [replace(token, register=register) for token in page.tokens]
        while name not in ("over", "code"):
            name = self.states[name].write(page)
        if name == "code":
            write_code(page)
        return page.tokens

    def gift_story(self, rng: random.Random, *, unseen_sentences: bool) -> list[Token]:
        """A story up to and including the recipient, in combinations of words that training never saw.

        `unseen` holds for giver and recipient, and for the recipient and the gift; with
        `unseen_sentences` every sentence is new too.
        """
        while True:
            page = Page(rng)
            if unseen_sentences:
                (self.meetings if rng.random() < 0.5 else self.openings).write(page, only_unseen=True)
                self.gifts.write(page, only_unseen=True)
            else:
                name = self.states["start"].write(page, only_unseen=True)
                while name in ("scene0", "scene1", "scene2", "gift"):
                    name = self.states[name].write(page, only_unseen=True)
            ends = [i for i, token in enumerate(page.tokens) if token.role == "recipient"]
            if ends:
                return page.tokens[: ends[0] + 1]


def vocabulary() -> list[str]:
    """Every token of the language, `END` and the unknown word first, in a fixed order."""
    text = [END, "<unk>", *NAMES, *words.UNARY, *words.BINARY, *words.STRINGS, *"()[]{}=,:", "\n", "print", "return"]
    text += [word for group in words.CLASSES.values() for word in group]
    text += [form for pair in PRONOUNS.values() for form in pair]
    states = [*Grammar().states.values()]
    while states:
        node = states.pop()
        states += node.children.values()
        text += sorted(element for element in node.children if isinstance(element, str))
    return list(dict.fromkeys(text))
