"""Exits with a list of what the pages of a built site load from elsewhere; nothing, where all lies beside them.

python docs/check_offline.py build/docs/site
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

LOADED = {"a": (), "link": ("href",)}
"""Attributes of a tag that name what a browser loads by itself; of all others `DEFAULT`."""
DEFAULT = ("src", "data", "poster", "href", "xlink:href")
LISTS = ("srcset", "imagesrcset")
"""Attributes that name several, each with its size behind it."""
ELSEWHERE = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
IN_STYLES = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)", re.IGNORECASE)


class Resources(HTMLParser):
    """What a page loads from elsewhere: scripts, styles, fonts, pictures, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = [v for k, v in attrs if k in LOADED.get(tag, DEFAULT) and v]
        named += [each for k, v in attrs if k in LISTS for each in re.split(r",\s+|\s+", v or "")]
        self.elsewhere += [address for address in named if ELSEWHERE.match(address)]
        self.elsewhere += IN_STYLES.findall(dict(attrs).get("style") or "")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.elsewhere += IN_STYLES.findall(data)


def elsewhere(path: Path) -> list[str]:
    """Addresses from which a page, or a style sheet, loads something."""
    text = path.read_text()
    if path.suffix == ".css":
        return IN_STYLES.findall(text)
    resources = Resources()
    resources.feed(text)
    return resources.elsewhere


def problems(site: Path) -> Iterator[str]:
    """A line for each resource from elsewhere."""
    for path in sorted(path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg")):
        for address in elsewhere(path):
            yield f"{path.relative_to(site)} loads {address}"


if __name__ == "__main__":
    sys.exit("\n".join(problems(Path(sys.argv[1]))) or None)
