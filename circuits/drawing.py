"""A circuit as a picture: layers as rows, darker and wider arrows for stronger effects, colour by sign."""

import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import graphviz

from circuits.graph import Edge, ErrorTerm, FeatureGraph, Node, NodeId, Readout
from sae_core.files import user_path, write_bytes, write_text
from sae_core.marks import marked
from sae_core.partial import final
from sae_core.sites import Stream

SUPPORTS, SUPPRESSES = "#1b4f9c", "#b3261e"
CAPTION, GREY = 140, "#555555"
"""Letters in a line of a caption, and the colour of what explains."""


def dot_source(graph: FeatureGraph, caption: Sequence[str] = ()) -> str:
    """The circuit in Graphviz's DOT language, input at the bottom, the lines of `caption` below."""
    dot = graphviz.Digraph("circuit", graph_attr=GRAPH, node_attr=NODE, edge_attr={"arrowsize": "0.8"})
    strongest = max((abs(edge.effect) for edge in graph.edges), default=1.0)
    rows: dict[str, list[Node]] = {}
    for node in sorted(graph.nodes, key=lambda node: _height(node.id)):
        rows.setdefault(_row(node.id), []).append(node)
    for name, nodes in rows.items():
        row = graphviz.Digraph(graph_attr={"rank": "same"})
        row.node(f"row {name}", label=name, shape="plaintext", fontcolor=GREY, fillcolor="none", fontsize="13")
        for node in nodes:
            row.node(_name(node.id), label=literal(_label(node)), **node_look(node.id, graph.target))
        dot.subgraph(row)
    for below, above in pairwise(rows):
        dot.edge(f"row {below}", f"row {above}", style="invis")
    for edge in graph.edges:
        dot.edge(_name(edge.cause), _name(edge.target), **_edge_look(edge, strongest))
    legend = graphviz.Digraph("cluster_legend", graph_attr={"label": "", "color": "none"})
    legend.node("legend", shape="plaintext", fillcolor="none", label=_legend(graph))
    dot.subgraph(legend)
    if caption:
        lines = [line for text in caption for line in textwrap.wrap(shown(text), CAPTION)]
        text = "".join(f"{literal(line)}\\l" for line in lines)
        dot.attr(label=text, labelloc="b", labeljust="l", fontcolor=GREY)
    return dot.source


def literal(text: str) -> str:
    r"""`text` as labels and tooltips show it letter by letter.

    In DOT a backslash begins an escape (`\N` is the node's name) or, as the last letter, keeps the string open, and
    HTML entities are read in plain labels too.
    """
    return graphviz.escape(text.replace("&", "&amp;"))


def _name(id: NodeId) -> str:
    """A node's name in DOT, where a colon would begin a port, and a backslash at the end keep the string open."""
    return graphviz.escape(shown(str(id)).replace(":", ""))


def _height(id: NodeId) -> tuple[int, int]:
    """Rows sort by it, input first."""
    if isinstance(id, Readout):
        return (sys.maxsize, 0)
    return (id.site.layer, list(Stream).index(id.site.stream))


def _row(id: NodeId) -> str:
    if isinstance(id, Readout):
        return "logits"
    stream = id.site.stream
    return f"layer {id.site.layer}" if stream is Stream.RESID_POST else f"{stream} {id.site.layer}"


GRAPH = {"rankdir": "BT", "nodesep": "0.3", "ranksep": "0.6", "bgcolor": "white", "fontname": "Helvetica"}
NODE = {
    "shape": "box",
    "style": "rounded,filled",
    "fillcolor": "#f3f6fa",
    "color": "#5b6b7f",
    "fontname": "Helvetica",
    "fontsize": "12",
    "margin": "0.12,0.06",
}
_LEGEND_LINES = (
    (SUPPORTS, "blue: the cause supports the target"),
    (SUPPRESSES, "red: the cause inhibits the target"),
    ("#555555", "number: share of the target lost"),
    ("#555555", "when the cause is ablated; darker is stronger"),
)
_FAINT = ("#555555", "dashed: no stronger than random directions")
_UNSURE = ("#555555", "dotted: found by a screen, not among all")


def _legend(graph: FeatureGraph) -> str:
    """What colours and strokes say, of those that are there."""
    lines = list(_LEGEND_LINES)
    lines += [_FAINT] * any(not edge.solid for edge in graph.edges)
    lines += [_UNSURE] * any(not edge.certified and edge.solid for edge in graph.edges)
    cells = (
        f"<tr><td align='left'><font point-size='11' color='{colour}'>{text}</font></td></tr>" for colour, text in lines
    )
    return f"<<table border='0' cellspacing='2'>{''.join(cells)}</table>>"


def _label(node: Node) -> str:
    if isinstance(node.id, ErrorTerm):
        return f"error term\n{node.id.site}"
    if isinstance(node.id, Readout):
        return shown(str(node.id))
    rows = [node.name] if node.name else []
    rows += node.label.lines if node.label else []
    rows += ["attention sink"] if node.sink else []
    return "\n".join([str(node.id), *(clipped(row, 40) for row in rows)])


def shown(token: str) -> str:
    """A text on one line, marks for what cannot be seen."""
    return marked(token.replace("\n", "\\n"))


def clipped(token: str, most: int = 14) -> str:
    """The text in at most so many letters."""
    text = shown(token)
    return text if len(text) <= most else text[: most - 1] + "…"


def node_look(node: NodeId, target: NodeId) -> dict[str, str]:
    """How the box of a node differs from others."""
    look = {"fillcolor": "#fff3cd", "penwidth": "1.6"} if node == target else {}
    if isinstance(node, ErrorTerm):
        look |= {
            "shape": "hexagon",
            "style": "filled",
            "fillcolor": "#eeeeee",
            "fontcolor": "#666666",
            "fontsize": "10",
        }
    return look


def arrow(effect: float, strongest: float, style: str) -> dict[str, str]:
    """An arrow, the darker and wider the stronger, coloured by sign; `style` is empty for a solid line."""
    share = abs(effect) / strongest
    alpha, colour = round(60 + 195 * share), SUPPORTS if effect > 0 else SUPPRESSES
    if style == "dashed":
        alpha = min(alpha, 90)
    return ({"style": style} if style else {}) | {
        "color": f"{colour}{alpha:02x}",
        "fontcolor": colour,
        "penwidth": f"{0.6 + 3.4 * share:.2f}",
        "label": f" {effect:+.2f}" if abs(effect) >= 0.005 else f" {effect:+.1g}",
        "fontsize": "10",
        "fontname": "Helvetica",
    }


def _edge_look(edge: Edge, strongest: float) -> dict[str, str]:
    style = ("" if edge.certified else "dotted") if edge.solid else "dashed"
    counts = f"active on {edge.n_active} of {edge.n_examples}"
    tooltip = literal(f"{edge.cause} to {shown(str(edge.target))}: {edge.effect:+.3f}, {counts}")
    return arrow(edge.effect, strongest, style) | {"tooltip": tooltip}


@dataclass(frozen=True)
class Drawing:
    """The files of a drawn circuit."""

    paths: tuple[Path, ...]
    """The DOT file, then the pictures that could be made."""
    problem: str = ""
    """One line on the pictures that could not be made, and what to do about it."""


KINDS = ("svg", "png", "pdf")
"""Kinds of picture that are made, and named by the ending of a file."""


def draw(source: str, folder: str | Path, name: str = "circuit") -> Drawing:
    """Write DOT text as it is and as SVG, PNG and PDF; without a working Graphviz the DOT file alone."""
    folder = user_path(folder)
    path = folder / f"{name}.dot"
    write_text(path, source)
    paths, failed = [path], []
    for kind in KINDS:
        picture = folder / f"{name}.{kind}"
        try:
            content = render(source, kind)
        except (ImportError, OSError, subprocess.CalledProcessError, ValueError) as error:
            failed.append(f"no {kind} picture ({str(error).splitlines()[0] if str(error) else type(error).__name__})")
            continue
        write_bytes(picture, content)
        paths.append(picture)
    advice = f"{final(path)} can be drawn with any Graphviz"
    problem = f"Graphviz could not be run: {', '.join(failed)}; {advice}" if failed else ""
    return Drawing(tuple(paths), problem)


def render(source: str, kind: str) -> bytes:
    """A picture of DOT text, by the `dot` program if there is one, else by the Graphviz inside pygraphviz."""
    if shutil.which("dot"):
        done = subprocess.run(["dot", f"-T{kind}", "-Gdpi=110"], input=source.encode(), capture_output=True, check=True)
        return done.stdout
    import pygraphviz

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pygraphviz passes on remarks about fonts as warnings
        graph, args = pygraphviz.AGraph(string=source), "-Gdpi=110" if kind == "png" else ""
        return cast(bytes, graph.draw(format=kind, prog="dot", args=args))
