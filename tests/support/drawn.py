"""What tests of pictures share: hostile tokens, edges, and the text of a picture."""

from xml.etree import ElementTree

from circuits.graph import Edge
from sae_core.sites import FeatureId

ODD = (
    '"',
    "\\",
    "<",
    ">",
    "&",
    "\n",
    "Mädchen",
    "a\\nb",
    "\\N",
    "%s",
    "{}|",
    "]]>",
    "<b>",
    "&amp;",
    "'",
    "é\u200b",
    "\u202eb",
    "日本",
)


def edge(cause: str, target: str, effect: float) -> Edge:
    return Edge(FeatureId.parse(cause), FeatureId.parse(target), effect, 0.01, 20, 24, 0.1)


def svg_text(picture: bytes) -> str:
    """All text of an SVG; parsing it is the check that it is one."""
    root = ElementTree.fromstring(picture)
    assert root.tag.endswith("svg")
    return "\n".join(root.itertext())
