"""Code-like lines: assignments and prints, with brackets nested up to three deep."""

from collections.abc import Iterable
from itertools import count

from sae_core.storybook import words
from sae_core.storybook.page import CLOSING, END, Page


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
