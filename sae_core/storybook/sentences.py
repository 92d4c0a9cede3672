"""Sentences with slots, merged into a trie, so that each choice is made at the token where texts diverge."""

from dataclasses import dataclass, field

from sae_core.storybook import words
from sae_core.storybook.page import NAMES, PRONOUNS, Page, female, unseen


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
                choices = {element: 1.0} if isinstance(element, str) else element.options(page, only_unseen=only_unseen)
                for word, p in choices.items():
                    assert word not in options, f"{word!r} may come from two places"
                    options[word], owner[word] = child.weight * p, element
            word = page.write(options)
            element = owner[word]
            if isinstance(element, Slot) and element.kind == "person":
                page.people[element.person] = word
            node = node.children[element]
        page.annotate(node.roles)
        return node.next
