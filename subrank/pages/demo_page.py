"""The page that `subrank demo` ends with: three results with their pictures, then links, then tables to unfold."""

from collections.abc import Sequence
from pathlib import Path

from editing.set_quality import SetQuality
from subrank.pages.demo_cards import DemoCard, dictionaries_table
from subrank.pages.page import render, write_page

_TITLE = "subrank: a language model, taken apart"
_FURTHER = (
    ("circuit/explore/index.html#view=features", "all features, to be searched"),
    ("features/features.html", "cards of single features"),
    ("steer/steer.html", "text steered by a feature"),
    ("prompt/prompt.html", "the features of one prompt"),
)
"""Pages beside those of the cards, which are linked to where they are."""


def demo_page(path: Path, cards: Sequence[DemoCard], quality: SetQuality, minutes: float) -> None:
    """Write the page, which has fewer than 900 words; `quality` is that of the dictionaries."""
    values = {
        "cards": [(card, _there(path, card.links)) for card in cards],
        "further": _there(path, _FURTHER),
        "dictionaries": dictionaries_table(quality),
        "minutes": f"{minutes:.0f}" if minutes >= 2 else f"{minutes:.1f}",
    }
    write_page(path, _TITLE, render("demo.html", **values))


def _there(path: Path, links: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The links whose pages exist beside the index."""
    return [link for link in links if (path.parent / link[0].partition("#")[0]).is_file()]
