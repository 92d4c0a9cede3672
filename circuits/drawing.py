"""A circuit as a picture: layers as rows, darker and wider arrows for stronger effects, colour by sign."""

import shutil
import subprocess
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import graphviz

from circuits.graph import Edge, FeatureGraph, Node
from sae_core.files import write_text

SUPPORTS, SUPPRESSES = "#1b4f9c", "#b3261e"


def dot_source(graph: FeatureGraph) -> str:
    """The circuit in Graphviz's DOT language, input at the bottom."""
    dot = graphviz.Digraph("circuit", graph_attr=_GRAPH, node_attr=_NODE, edge_attr={"arrowsize": "0.8"})
    strongest = max((abs(edge.effect) for edge in graph.edges), default=1.0)
    layers: dict[int, list[Node]] = {}
    for node in graph.nodes:
        layers.setdefault(node.feature.site.layer, []).append(node)
    for layer, nodes in sorted(layers.items(), reverse=True):
        with dot.subgraph() as row:
            row.attr(rank="same")
            row.node(f"layer {layer}", shape="plaintext", fontcolor="#777777", fillcolor="none", fontsize="13")
            for node in nodes:
                emphasis = {"fillcolor": "#fff3cd", "penwidth": "1.6"} if node.feature == graph.target else {}
                row.node(str(node.feature), label=graphviz.escape(_label(node)), **emphasis)
    rows = sorted(layers)
    for below, above in pairwise(rows):
        dot.edge(f"layer {below}", f"layer {above}", style="invis")
    for edge in graph.edges:
        dot.edge(str(edge.cause), str(edge.target), **_edge_look(edge, strongest))
    with dot.subgraph(name="cluster_legend") as legend:
        legend.attr(label="", color="none")
        legend.node("legend", shape="plaintext", fillcolor="none", label=_LEGEND)
    return dot.source


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
    (SUPPRESSES, "red: the cause holds the target down"),
    ("#555555", "number: share of the target's activation lost"),
    ("#555555", "when the cause is ablated; darker is stronger"),
)
_LEGEND = "<<table border='0' cellspacing='2'>{}</table>>".format(
    "".join(
        f"<tr><td align='left'><font point-size='11' color='{colour}'>{text}</font></td></tr>"
        for colour, text in _LEGEND_LINES
    )
)


def _label(node: Node) -> str:
    lines = [str(node.feature), "on: " + "  ".join(_short(word) for word in node.responds_to)]
    if node.promotes:
        lines.append("says: " + "  ".join(_short(word) for word in node.promotes))
    return "\n".join(lines)


def _short(word: str) -> str:
    word = word.replace("\n", "\\n")
    word = word if len(word) <= 14 else word[:13] + "…"
    return word.replace("&", "&amp;")  # Graphviz reads HTML entities in plain labels too


def _edge_look(edge: Edge, strongest: float) -> dict[str, str]:
    share = abs(edge.effect) / strongest
    alpha = round(60 + 195 * share)
    colour = SUPPORTS if edge.effect > 0 else SUPPRESSES
    return {
        "color": f"{colour}{alpha:02x}",
        "fontcolor": f"{colour}{max(alpha, 150):02x}",
        "penwidth": f"{0.6 + 3.4 * share:.2f}",
        "label": f" {edge.effect:+.2f}",
        "fontsize": "10",
        "fontname": "Helvetica",
        "tooltip": f"{edge.cause} to {edge.target}: {edge.effect:+.3f}, active on {edge.n_active} of {edge.n_examples}",
    }


def draw(graph: FeatureGraph, folder: Path, name: str = "circuit") -> Iterator[Path | str]:
    """Write DOT, SVG and PNG; yields their paths, or one line instead of a picture that could not be made."""
    source = dot_source(graph)
    path = folder / f"{name}.dot"
    write_text(path, source)
    yield path
    failed = []
    for kind in ("svg", "png"):
        picture = folder / f"{name}.{kind}"
        partial = picture.with_name(f".{picture.name}")
        try:
            partial.write_bytes(render(source, kind))
        except (ImportError, OSError, subprocess.CalledProcessError, ValueError) as error:
            failed.append(f"no {kind} picture ({str(error).splitlines()[0] if str(error) else type(error).__name__})")
            continue
        partial.replace(picture)
        yield picture
    if failed:
        yield f"Graphviz could not be run: {', '.join(failed)}; {path} can be drawn with any Graphviz"


def render(source: str, kind: str) -> bytes:
    """A picture of DOT text, by the `dot` program if there is one, else by the Graphviz inside pygraphviz."""
    if shutil.which("dot"):
        done = subprocess.run(["dot", f"-T{kind}", "-Gdpi=110"], input=source.encode(), capture_output=True, check=True)
        return done.stdout
    import pygraphviz

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pygraphviz passes on remarks about fonts as warnings
        return pygraphviz.AGraph(string=source).draw(format=kind, prog="dot", args="-Gdpi=110" if kind == "png" else "")
