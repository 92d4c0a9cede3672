"""HTML from the templates: pages that open from disk, and fragments for notebooks.

Numbers become `Table`s here and in the page modules; the templates hold the words. Autoescape is on, so every token
and name is shown as text, and `finalize` marks what cannot be seen in it. Markup enters in two places only: a plotly
figure (`figure`) and a drawing (`drawing`). A page is one HTML file with the style sheet inside; plotly lies beside the
pages, one copy for all.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sae_core.estimate import Estimate
from sae_core.files import write_text
from sae_core.marks import marked

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MISSING = "–"
"""What a table shows where there is no value."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table with more than one line of plain text."""

    text: str
    small: str = ""
    """Smaller lines below: an interval, or what a feature responds to."""
    link: str = ""


@dataclass(frozen=True)
class Table:
    """What a template draws as a table."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    best: int | None = None
    """The number of the row that is highlighted."""
    prose: bool = False
    """Whether the last column holds sentences: to the left, and wrapped."""
    wide: bool = False
    """Whether it may be wider than the text of the page."""


def estimate_cell(value: Estimate | float | None, spec: str = ".3f", ends: str | None = None) -> Cell:
    """The number by `spec`, a dash for NaN, and below it its interval by `ends` (by default as the number), if any."""
    number = value.value if isinstance(value, Estimate) else value
    if number is None or math.isnan(number):
        return Cell(MISSING)
    if not isinstance(value, Estimate) or math.isnan(value.low):
        return Cell(format(number, spec))
    ends = ends or spec
    return Cell(format(value.value, spec), f"[{format(value.low, ends)}, {format(value.high, ends)}]")


@dataclass(frozen=True)
class Token:
    """A token within a text, on a colour that says how much there is of something."""

    text: str
    share: float | None = 0.0
    """From -1 (blue) to 1 (orange); None for a token that was not measured."""
    title: str = ""
    """What is shown where the mouse rests on it."""
    framed: bool = False

    @property
    def css(self) -> str:
        """Its classes in the style sheet."""
        if self.share is None:
            return "special"
        shade = "up" if self.share > 0 else "down" if self.share < 0 else ""
        return " ".join(filter(None, (shade, "end" if self.framed else "")))


def yes_or_no(value: bool) -> str:
    """`value` in a table."""
    return "yes" if value else "no"


def sentence(text: str) -> str:
    """The text with a capital at its beginning and a full stop at its end."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."


def visible_token(token: str) -> str:
    """A token with signs for the characters that break lines, and marks for those that cannot be seen."""
    return marked(token.replace("\n", "↵").replace("\t", "⇥").replace("\r", "↵"))


def _plain_marked(value: Any) -> Any:
    """What a template shows, with marks for what cannot be seen; `Markup` has been through here before."""
    return marked(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def joint(tokens: Sequence[Token]) -> str:
    """What stands between the tokens of a text: nothing, where they bring their own spaces."""
    return "" if any(token.text.startswith(" ") or token.text.endswith(" ") for token in tokens) else " "


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("subrank.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain_marked,
    )
    environment.filters |= {"sentence": sentence, "visible": visible_token, "joint": joint}
    environment.globals |= {"style": Markup((Path(__file__).parent / "templates" / "style.css").read_text("utf-8"))}
    return environment


def render(template: str, **values: Any) -> Markup:
    """The template with these values, everything that is not `Markup` escaped."""
    return Markup(_environment().get_template(template).render(**values).strip())


def _part(name: str, *values: Any) -> Markup:
    """A macro of `parts.html` with these values."""
    return getattr(_environment().get_template("parts.html").module, name)(*values)


def figure(plot: "Figure") -> Markup:
    """A plotly figure as a part of a page, which loads plotly itself (`write_page`)."""
    html = plot.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True})
    return _part("figure", Markup(html), _described(plot))


def _described(plot: "Figure") -> str:
    """A figure in words for those who do not see it: its title or axes, and the names of what it draws."""
    layout = plot.layout.to_plotly_json()
    text = {name: (layout.get(name) or {}).get("title", {}).get("text", "") for name in ("xaxis", "yaxis")}
    title = layout.get("title", {}).get("text") or " against ".join(filter(None, (text["yaxis"], text["xaxis"])))
    names = list(dict.fromkeys(trace.name for trace in plot.data if trace.name))
    return f"{title}: {', '.join(names)}" if names else title


def picture(address: str, alt: str) -> Markup:
    """A picture that lies beside the page."""
    return Markup('<img src="{}" alt="{}">').format(address, alt)


def drawing(svg: str) -> Markup:
    """The text of an SVG file as an element of a page, without its own size: the page says how wide it is.

    Without ids, too: two drawings of a page may have the same.
    """
    start, end = svg.index("<svg"), svg.index(">", svg.index("<svg"))
    opening = re.sub(r'\s(width|height)="[^"]*"', "", svg[start:end])
    return Markup(opening + re.sub(r'<g id="[^"]*"', "<g", svg[end:]))


def titled(title: str, *parts: str) -> Markup:
    """The parts of a page below a heading."""
    return _part("titled", title, parts)


def link(address: str, words: str) -> Markup:
    """A paragraph that links to another page."""
    return _part("link", address, words)


def warned(text: str) -> Markup:
    """A paragraph that a reader should see first; nothing for the empty text."""
    return Markup('<p class="lead"><b>{}</b></p>\n').format(text) if text else Markup()


def write_page(path: Path, title: str, body: str, assets: Path | None = None, *, lies_in: Path | None = None) -> None:
    """Write a page; `assets` is the folder that holds (or gets) the one copy of plotly, by default the page's own.

    `body` is Markup, as the sections are; a plain string is text and is escaped. `lies_in` is the folder where the page
    will be read, if it is moved there.
    """
    folder = lies_in or path.parent
    script = (assets or folder) / "plotly.min.js"
    if not script.is_file():
        from plotly.offline import get_plotlyjs

        write_text(script, get_plotlyjs())
    source = os.path.relpath(script, folder).replace(os.sep, "/")
    write_text(path, render("base.html", title=title, body=body, plotly=source) + "\n")


def fragment(body: str) -> str:
    """Sections as HTML for a notebook cell: text and tables with their style, without figures and without scripts."""
    # plotly writes every "<" of its data as \u003c, so that no token can close the element early
    bare = re.sub(r'<figure class="plot"[^>]*>.*?</figure>', "", str(body), flags=re.DOTALL)
    return str(render("fragment.html", body=Markup(bare)))
