"""A circuit as a picture: layers as rows, darker and wider arrows for stronger effects, colour by sign."""

import shutil
import subprocess
import sys
import warnings
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


def dot_source(graph: FeatureGraph) -> str:
    """The circuit in Graphviz's DOT language, input at the bottom."""
    dot = graphviz.Digraph("circuit", graph_attr=_GRAPH, node_attr=_NODE, edge_attr={"arrowsize": "0.8"})
    strongest = max((abs(edge.effect) for edge in graph.edges), default=1.0)
    rows: dict[str, list[Node]] = {}
    for node in sorted(graph.nodes, key=lambda node: _height(node.id)):
        rows.setdefault(_row(node.id), []).append(node)
    for name, nodes in rows.items():
        row = graphviz.Digraph(graph_attr={"rank": "same"})
        row.node(f"row {name}", label=name, shape="plaintext", fontcolor="#777777", fillcolor="none", fontsize="13")
        for node in nodes:
            row.node(_name(node.id), label=_literal(_label(node)), **_node_look(node, graph.target))
        dot.subgraph(row)
    for below, above in pairwise(rows):
        dot.edge(f"row {below}", f"row {above}", style="invis")
    for edge in graph.edges:
        dot.edge(_name(edge.cause), _name(edge.target), **_edge_look(edge, strongest))
    legend = graphviz.Digraph("cluster_legend", graph_attr={"label": "", "color": "none"})
    legend.node("legend", shape="plaintext", fillcolor="none", label=_legend(graph))
    dot.subgraph(legend)
    return dot.source


def _literal(text: str) -> str:
    r"""`text` as labels and tooltips show it letter by letter.

    In DOT a backslash begins an escape (`\N` is the node's name) or, as the last letter, keeps the string open, and
    HTML entities are read in plain labels too.
    """
    return graphviz.escape(text.replace("&", "&amp;"))


def _name(id: NodeId) -> str:
    """A node's name in DOT, where a colon would begin a port, and a backslash at the end keep the string open."""
    return graphviz.escape(_shown(str(id)).replace(":", ""))


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


_GRAPH = {"rankdir": "BT", "nodesep": "0.3", "ranksep": "0.6", "bgcolor": "white", "fontname": "Helvetica"}
_NODE = {
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
        return _shown(str(node.id))
    lines = [str(node.id)] + [_short(node.name, 26)] * bool(node.name)
    if node.responds_to:
        lines.append("on: " + "  ".join(_short(word) for word in node.responds_to))
    if node.sink:
        lines.append("attention sink")
    if node.promotes:
        lines.append("top logits: " + "  ".join(_short(word) for word in node.promotes))
    return "\n".join(lines)


def _shown(token: str) -> str:
    return marked(token.replace("\n", "\\n"))


def _short(token: str, most: int = 14) -> str:
    text = _shown(token)
    return text if len(text) <= most else text[: most - 1] + "…"


def _node_look(node: Node, target: NodeId) -> dict[str, str]:
    look = {"fillcolor": "#fff3cd", "penwidth": "1.6"} if node.id == target else {}
    if isinstance(node.id, ErrorTerm):
        look |= {
            "shape": "hexagon",
            "style": "filled",
            "fillcolor": "#eeeeee",
            "fontcolor": "#666666",
            "fontsize": "10",
        }
    return look


def _edge_look(edge: Edge, strongest: float) -> dict[str, str]:
    share = abs(edge.effect) / strongest
    alpha = round(60 + 195 * share)
    colour = SUPPORTS if edge.effect > 0 else SUPPRESSES
    stroke = {} if edge.solid and edge.certified else {"style": "dotted" if edge.solid else "dashed"}
    if not edge.solid:
        alpha = min(alpha, 90)
    counts = f"active on {edge.n_active} of {edge.n_examples}"
    return stroke | {
        "color": f"{colour}{alpha:02x}",
        "fontcolor": f"{colour}{max(alpha, 150):02x}",
        "penwidth": f"{0.6 + 3.4 * share:.2f}",
        "label": f" {edge.effect:+.2f}",
        "fontsize": "10",
        "fontname": "Helvetica",
        "tooltip": _literal(f"{edge.cause} to {_shown(str(edge.target))}: {edge.effect:+.3f}, {counts}"),
    }


@dataclass(frozen=True)
class Drawing:
    """The files of a drawn circuit."""

    paths: tuple[Path, ...]
    """The DOT file, then the pictures that could be made."""
    problem: str = ""
    """One line on the pictures that could not be made, and what to do about it."""


def draw(graph: FeatureGraph, folder: str | Path, name: str = "circuit") -> Drawing:
    """Write the circuit as DOT, SVG and PNG; without a working Graphviz the DOT file alone."""
    source, folder = dot_source(graph), user_path(folder)
    path = folder / f"{name}.dot"
    write_text(path, source)
    paths, failed = [path], []
    for kind in ("svg", "png"):
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
