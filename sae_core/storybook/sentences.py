"""Sentences with slots, merged into a trie, so that each choice is made at the token where texts diverge."""

from dataclasses import dataclass, field

from sae_core.storybook import words
from sae_core.storybook.page import NAMES, PRONOUNS, Choice, Page, female, unseen


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

    def depends_on(self, page: Page) -> tuple[str, ...]:
        """What on the page says what may stand here: its person, by name, or where that is nobody yet all others."""
        if not self.person:
            return ()
        known = page.people.get(self.person)
        return ("", *page.people.values()) if known is None else (known,)

    def options(self, page: Page, *, only_unseen: bool) -> dict[str, float]:
        """The words that may stand here, with their probabilities."""
        if self.kind in PRONOUNS:
            return {PRONOUNS[self.kind][0 if female(page.people[self.person]) else 1]: 1.0}
        if self.kind == "person":
            if self.person in page.people:
                return {page.people[self.person]: 1.0}
            known = tuple(page.people.values())
            # no three names are pairwise unseen: a new combination is new with the first name
            compared = known[:1] if only_unseen else known
            words_here = [n for n in NAMES if n not in known and all(unseen(n, k) == only_unseen for k in compared)]
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
    _choices: dict[tuple, "tuple[Choice, dict[str, str | Slot]]"] = field(default_factory=dict, repr=False)
    """What may come next, by what it depends on, once it was asked for: most of the time is spent on it else."""

    def add(self, sentence: str, weight: float, then: str) -> None:
        """Add one sentence with its weight and the name of the state that follows it."""
        words_here = (text.replace("\\n", "\n") for text in sentence.split(" "))
        elements = [Slot.parse(text) if len(text) > 1 and text[0] == "{" else text for text in words_here]
        node = self
        node.weight += weight
        node._choices.clear()
        for element in elements:
            assert node.next is None, f"another sentence begins like this one and ends earlier: {sentence}"
            node = node.children.setdefault(element, State())
            node.weight += weight
            node._choices.clear()
        assert node.next is None and not node.children, f"sentence has two continuations: {sentence}"
        node.next, node.roles = then, tuple(getattr(element, "role", "") for element in elements)

    def write(self, page: Page, *, only_unseen: bool = False) -> str:
        """Write one sentence on `page`; returns the name of the next state."""
        node = self
        while node.next is None:
            choice, leads_to = node.choice(page, only_unseen=only_unseen)
            word = page.draw(choice)
            element = leads_to[word]
            if isinstance(element, Slot) and element.kind == "person":
                page.people[element.person] = word
            node = node.children[element]
        page.annotate(node.roles)
        return node.next

    def choice(self, page: Page, *, only_unseen: bool) -> tuple[Choice, dict[str, "str | Slot"]]:
        """The words that may come next, and the element that each of them comes from."""
        names = (element.depends_on(page) for element in self.children if isinstance(element, Slot))
        known = (only_unseen, *names)
        if known not in self._choices:
            options, leads_to = {}, {}
            for element, child in self.children.items():
                is_word = isinstance(element, str)
                words_here = {element: 1.0} if is_word else element.options(page, only_unseen=only_unseen)
                for word, p in words_here.items():
                    assert word not in options, f"{word!r} may come from two places"
                    options[word], leads_to[word] = child.weight * p, element
            self._choices[known] = Choice(options), leads_to
        return self._choices[known]
