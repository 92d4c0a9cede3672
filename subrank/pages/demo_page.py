"""The page that `subrank demo` ends with: four results, each with a link to its folder's page."""

from collections.abc import Sequence
from pathlib import Path

from subrank.pages.page import render, write_page

_TITLE = "subrank: a language model, taken apart"
_PARTS = (
    ("A dictionary for every layer", ()),
    ("Which features carry the indirect object", (("ioi/ioi.html", "the experiment"),)),
    (
        "The circuit behind a closing bracket",
        (
            ("circuit/circuit.html", "the circuit, and how good it is"),
            ("circuit/explore/index.html", "explore it: cards, examples, all features"),
        ),
    ),
    ("Removing pronouns", (("remove/remove.html", "the experiment"),)),
)
"""Title of each section, and the pages behind it, which are linked to where they are."""


def demo_page(path: Path, sections: Sequence[str], minutes: float) -> None:
    """Write the page; `sections` are those of the dictionaries, IOI, the circuit and the removal, in this order."""
    parts = [
        {"title": title, "links": [link for link in links if (path.parent / link[0]).is_file()], "section": section}
        for (title, links), section in zip(_PARTS, sections, strict=True)
    ]
    write_page(path, _TITLE, render("demo.html", parts=parts, minutes=f"{minutes:.1f}"))
