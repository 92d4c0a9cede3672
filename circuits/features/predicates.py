"""What is true of a token by the characters around it: what features are checked against.

A predicate is a truth value for every token of a text, computed from characters alone, those of the token and before it
(what a causal model has read), or of the next token (what it should predict). Brackets and quotes are followed from the
beginning of a document as a context holds it; a closing bracket closes the nearest open one of its kind with all that
was opened inside, and none where none is open, as behind the number of a list.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_core.model.language_model import LanguageModel

CLOSING = {"(": ")", "[": "]", "{": "}"}
_CLOSERS = frozenset(CLOSING.values())
QUOTES = ('"', "`")
PARAGRAPH = "\n\n"

_OF_TOKEN: dict[str, Callable[[str], bool]] = {
    "begins a word": lambda text: text[:1] == " " and text[1:2].isalpha(),
    "goes on with a word": lambda text: text[:1].isalpha(),
    "a word with a capital": lambda text: text.strip()[:1].isupper() and not text.strip().isupper(),
    "all capitals": lambda text: len(text.strip()) > 1 and text.strip().isupper(),
    "has a digit": lambda text: any(map(str.isdigit, text)),
    "has a line break": lambda text: "\n" in text,
    "spaces only": lambda text: bool(text) and not text.strip() and "\n" not in text,
    "punctuation": lambda text: bool(text.strip()) and not any(map(str.isalnum, text)),
    "has an underscore": lambda text: "_" in text,
    **{f"has {sign}": lambda text, sign=sign: sign in text for sign in "()[]{}<>\"'`,.:;=/-"},
}
_OF_NEXT = ("(", ")", "]", "}", '"', "`", ".", ",", ":", "\n")


def predicates(
    model: LanguageModel, contexts: Int[Tensor, "contexts pos"], next_texts: Iterable[str] = ()
) -> dict[str, Bool[Tensor, "contexts pos"]]:
    """The truth of every predicate at every token, by its name; false on special tokens.

    `next_texts` are beginnings of the next token that are asked for besides the usual ones.
    """
    content = model.content(contexts)
    distinct, place = contexts.unique(return_inverse=True)
    texts = [model.token_text(token) for token in distinct.tolist()]
    truths = {name: torch.tensor([test(text) for text in texts])[place] for name, test in _OF_TOKEN.items()}
    for beginning in dict.fromkeys([*_OF_NEXT, *next_texts]):
        begins = torch.tensor([_begins(text, beginning) for text in texts])[place] & content
        truths[next_predicate(beginning)] = torch.cat([begins[:, 1:], torch.zeros_like(begins[:, :1])], 1)
    rows = [
        open_marks([texts[i] if inside else None for i, inside in zip(row, mask, strict=True)])
        for row, mask in zip(place.tolist(), content.tolist(), strict=True)
    ]
    for mark in (*CLOSING, *QUOTES):
        truths[f"inside {mark}"] = torch.tensor([[mark in marks for marks in row] for row in rows])
    return {name: truth & content for name, truth in truths.items()}


def open_marks(pieces: Sequence[str | None]) -> list[frozenset[str]]:
    """The brackets and quotes that are open after each token; None is a special token, where another document begins.

    A quote closes the one that is open, or at the end of its paragraph; a run of quotes counts once, and one behind a
    backslash not at all.
    """
    opened: list[str] = []
    after, before = [], ""
    for piece in pieces:
        if piece is None:
            opened, before = [], ""
        for sign in piece or "":
            if sign in CLOSING:
                opened.append(sign)
            elif sign in QUOTES and before[-1:] not in (sign, "\\"):
                if sign in opened:
                    opened.remove(sign)
                else:
                    opened.append(sign)
            elif sign in _CLOSERS:
                kinds = [place for place, mark in enumerate(opened) if CLOSING.get(mark) == sign]
                del opened[kinds[-1] if kinds else len(opened) :]
            before = (before + sign)[-2:]
            if before == PARAGRAPH:
                opened = [mark for mark in opened if mark not in QUOTES]
        after.append(frozenset(opened))
    return after


def next_token_ids(model: LanguageModel, beginning: str) -> list[int]:
    """The tokens that are `beginning` but for spaces before it; where it has no letters, also those that go on with it.

    Many vocabularies have tokens such as `).` and `):`, in which a bracket closes, too.
    """
    return [token for token in range(model.n_vocab) if _begins(model.token_text(token), beginning)]


def _begins(text: str, beginning: str) -> bool:
    """One meaning for targets and predicates: "he" is not "help", and ")" is ")." too."""
    text, is_mark = text.lstrip(" "), not any(map(str.isalnum, beginning))
    return text == beginning or (is_mark and text.startswith(beginning))


def next_predicate(beginning: str) -> str:
    """The name of the predicate that the next token begins so, spaces aside."""
    return f"next: {beginning.replace(chr(10), '↵')}"
