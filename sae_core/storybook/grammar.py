"""The grammar of `storybook`: documents whose every token comes with its exact probability and the truth.

Every choice is made at the token where texts diverge: `Page.write` draws one token from a distribution
over tokens and keeps -log of its probability. Sentences that begin alike are therefore merged into a
trie first (`State`), and what is summed along a document is its exact surprise: the loss that no
language model of this text can beat on average.

Some combinations are never written (`unseen`): pairs of names, names with gifts, and whole sentences.
They are kept for measuring whether the model learned the rule or the examples.
"""

import random
from collections.abc import Iterable, Iterator

from sae_core.storybook import words
from sae_core.storybook.code_lines import write_code
from sae_core.storybook.page import END, NAMES, PRONOUNS, Page, Token
from sae_core.storybook.sentences import State
from sae_core.storybook.words import SENTENCES

_REGISTERS = {"recipe": 0.03, "weather": 0.03, "science": 0.03, "law": 0.03, "medicine": 0.05, "german": 0.05}
"""How often a document is in one of the registers that have states of their own."""


def _states() -> dict[str, State]:
    """All states of the prose: which sentences may follow which."""
    states: dict[str, State] = {}

    def add(name: str, sentences: Iterable[str], total: float, then: str) -> None:
        sentences = tuple(sentences)
        for sentence in sentences:
            states.setdefault(name, State()).add(sentence, total / len(sentences), then)

    add("start", SENTENCES["meetings"], 0.28, "scene0")
    add("start", SENTENCES["partings"], 0.10, "scene1")
    add("start", SENTENCES["openings"], 0.10, "gift")
    add("start", SENTENCES["alone"], 0.14, "alone0")
    add("start", SENTENCES["letter"], 0.02, "end")
    for name, weight in _REGISTERS.items():
        add("start", SENTENCES[name], weight, name)
    add("start", ["def {func} ( {var} ) : \\n"], 0.14, "code")
    for i, following in enumerate(("scene1", "scene2", "gift")):
        add(f"scene{i}", SENTENCES["fillers"], 0.5, following)
    for giver, receiver in (("A", "B"), ("B", "A")):
        after = f"after{giver}{receiver}"
        for name, weight in (("scene0", 0.25), ("scene1", 0.25), ("scene2", 0.25), ("gift", 0.5)):
            add(name, _cast(SENTENCES["gifts"], giver, receiver), weight, after)
        add(after, _cast(SENTENCES["thanks"], giver, receiver), 0.5, "end")
        add(after, ["Then they went home .", "The end .", "It was a {adj} {day} ."], 0.2, "end")
        add(after, [END], 0.3, "over")
    for i, following in enumerate(("alone1", "alone2", "alone3", "end")):
        add(f"alone{i}", SENTENCES["pronouns"], 0.7, following)
        add(f"alone{i}", SENTENCES["scenes"], 0.3, following)
    for name in _REGISTERS:
        add(name, SENTENCES[name], 0.75, name)
        add(name, [END], 0.25, "over")
    add("end", [END], 1.0, "over")
    return states


def _cast(sentences: Iterable[str], giver: str, receiver: str) -> Iterator[str]:
    """`sentences` with the people who play G and R."""
    for text in sentences:
        yield text.replace("{G", "{" + giver).replace("{R", "{" + receiver).replace("/R}", f"/{receiver}}}")


_NAMED = {"alone0": "story", "scene0": "story", "scene1": "story", "gift": "story", "end": "letter"}


class Grammar:
    """All documents of `storybook`; `document` draws one."""

    def __init__(self) -> None:
        self.states = _states()
        self.meetings, self.openings, self.gifts = State(), State(), State()
        for sentence in SENTENCES["unseen_meetings"]:
            self.meetings.add(sentence, 1.0, "gift")
        for sentence in SENTENCES["unseen_openings"]:
            self.openings.add(sentence, 1.0, "gift")
        for giver, receiver in (("A", "B"), ("B", "A")):
            for sentence in _cast(SENTENCES["unseen_gifts"], giver, receiver):
                self.gifts.add(sentence, 1.0, "over")

    def document(self, rng: random.Random) -> list[Token]:
        """Tokens of one document, from its first word to the `END` that closes it."""
        page = Page(rng)
        name = self.states["start"].write(page)
        # the register is named once the first sentence has shown it
        register = _NAMED.get(name, name)
        page.register = register
        page.tokens = [Token(t.text, t.log_prob, register, t.open, t.subject, t.role) for t in page.tokens]
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
