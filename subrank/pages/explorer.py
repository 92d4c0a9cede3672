"""A circuit and its features as a folder that a browser opens from disk: `index.html` and data beside it.

The data are classic scripts, `data/features-000.js` and so on, each one call of `subrank.add(name, value)`; the page
asks for them as they are needed, so that it opens at once whatever the number of features, without a server and
without a network. Cards stream through: in memory are a chunk of them, a chunk of the list's rows, and the ids.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuits.graph import Edge, ErrorTerm, FeatureGraph, Node, NodeId, Readout
from circuits.groups import groups_of
from sae_core.codec import finite, to_plain
from sae_core.errors import UserError
from sae_core.files import user_path, write_text
from sae_core.folders import FILES, replacing
from sae_core.partial import sweep
from sae_core.sites import Stream
from subrank.pages.names import check_groups, check_names
from subrank.pages.page import render

_VIEWER = Path(__file__).parent / "viewer"
CARDS, BYTES = 256, 1_000_000
"""A chunk of cards closes at so many, or at so much text: a card must open at once."""
LISTED = 16_384
"""Rows of a chunk of the list."""
EXAMPLES = 64
"""Edges whose examples share a chunk."""

EdgeExamples = Mapping[tuple[NodeId, NodeId], Sequence[dict[str, Any]]]
"""By cause and target: {"tokens": [str], "cause": [f], "target": [f], "end": int, "drop": f} each."""


@dataclass(frozen=True)
class Captions:
    """What is said of a circuit beside its nodes and edges."""

    title: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    """By `str(node)`, written by hand."""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Nodes that are drawn as one at first, by the group's name."""
    quality: Sequence[str] = ()
    """Sentences on how good the circuit is."""


def explore(
    folder: str | Path,
    graph: FeatureGraph | None,
    cards: Iterable[dict[str, Any]],
    *,
    edge_examples: EdgeExamples | None = None,
    captions: Captions | None = None,
) -> Path:
    """Write the folder and return its `index.html`; without a graph, a page of cards alone.

    The folder appears whole, and takes the place of an earlier one. Raises `UserError` if something else is there,
    for a card without an id or two of one feature, and for examples of an edge that the graph lacks.
    """
    folder = user_path(folder)
    captions = captions or Captions()
    check_names(captions.names)
    check_groups(captions.groups)
    sweep(folder)
    if folder.exists() and not _replaceable(folder):
        raise UserError(f"{folder} holds other files; give a new folder, or that of an earlier page")
    with replacing(folder, "index.html") as new:
        _fill(new, graph, cards, edge_examples or {}, captions)
    return folder / "index.html"


def _title(graph: FeatureGraph | None) -> str:
    return f"The circuit of {graph.target}" if graph else "Features"


def _replaceable(folder: Path) -> bool:
    """Whether a folder is empty or holds an earlier page only, so that it may be overwritten."""
    names = {path.name for path in folder.iterdir()} - {FILES} if folder.is_dir() else {""}
    return not names or {"index.html", "data"} <= names <= {"index.html", "data", "names.json"} | set(_static())


def _static() -> dict[str, str]:
    """The viewer's scripts and style sheet, by name."""
    return {file.name: file.read_text(encoding="utf-8") for file in _VIEWER.iterdir()}


def _fill(
    folder: Path,
    graph: FeatureGraph | None,
    cards: Iterable[dict[str, Any]],
    edge_examples: EdgeExamples,
    captions: Captions,
) -> None:
    title = captions.title or _title(graph)
    for name, text in _static().items():
        write_text(folder / name, text)
    listing = _Listing(folder, {str(node.id) for node in graph.nodes} if graph else set())
    for chunk in listing.chunks(cards):
        _write(folder, f"features-{len(listing.starts) - 1:03}", chunk)
    where = _write_examples(folder, graph, edge_examples)
    value = {
        "title": title,
        "run": _run(graph, listing),
        "names": dict(captions.names),
        "groups": {name: list(nodes) for name, nodes in captions.groups.items()},
        "joint": "" if listing.spaced else " ",
        "features": {"n": listing.n, "starts": listing.starts, "lists": listing.n_lists},
        "graph": graph_value(graph, listing.labels, where) | {"quality": list(captions.quality)} if graph else None,
    }
    _write(folder, "graph", _json(value))
    write_text(folder / "index.html", render("explorer.html", title=title) + "\n")


def _run(graph: FeatureGraph | None, listing: "_Listing") -> str:
    """The key under which a browser keeps this run's names: equal where the same nodes and edges, or cards, are."""
    if graph is None:
        return listing.digest.hexdigest()[:16]
    nodes = sorted(str(node.id) for node in graph.nodes)
    edges = sorted((str(edge.cause), str(edge.target)) for edge in graph.edges)
    return hashlib.sha256(json.dumps([str(graph.target), nodes, edges]).encode()).hexdigest()[:16]


class _Listing:
    """What of the cards is kept while they stream: the list's rows, until they fill a chunk, and the nodes' labels."""

    def __init__(self, folder: Path, wanted: set[str]):
        self.folder = folder
        self.wanted = wanted
        self.labels: dict[str, str] = {}
        """Label of each node of the graph that has a card with one."""
        self.spaced = False
        """Whether tokens bring their spaces; else a text has one between any two (`LanguageModel.brings_spaces`)."""
        self.starts: list[int] = []
        """Number of the first card of each chunk."""
        self.n = 0
        self.n_lists = 0
        self.digest = hashlib.sha256()
        self._seen: set[str] = set()
        self._rows: list[list[Any]] = []

    def chunks(self, cards: Iterable[dict[str, Any]]) -> Iterator[str]:
        """The cards as JSON arrays of at most `CARDS` cards or about `BYTES` characters."""
        texts, size = [], 0
        for card in cards:
            self._enter(card)
            text = _json(card | {"examples": _brief(card.get("examples", ()), "activations")})
            if texts and (len(texts) == CARDS or size + len(text) > BYTES):
                yield self._close(texts)
                texts, size = [], 0
            texts.append(text)
            size += len(text)
            self.n += 1
        if texts:
            yield self._close(texts)
        if self._rows:
            self._flush()

    def _enter(self, card: dict[str, Any]) -> None:
        """Note a card's row."""
        name = card.get("id")
        if not isinstance(name, str) or name in self._seen:
            problem = f"two cards are of {name}" if isinstance(name, str) else "a card has no id"
            raise UserError(f"{problem}; each feature has one card, and its id is like '5_17'")
        self._seen.add(name)
        self.digest.update(name.encode() + b"\n")
        texts = (example["tokens"] for example in card.get("examples", ()))
        self.spaced = self.spaced or any(" " in (token[:1], token[-1:]) for text in texts for token in text)
        label = _words(card.get("label"))
        if name in self.wanted and label:
            self.labels[name] = label
        self._rows.append([name, label, card.get("density"), peaks(card)])
        if len(self._rows) == LISTED:
            self._flush()

    def _close(self, texts: list[str]) -> str:
        self.starts.append(self.n - len(texts))
        return "[" + ",\n".join(texts) + "]"

    def _flush(self) -> None:
        _write(self.folder, f"list-{self.n_lists:03}", _json(self._rows))
        self.n_lists += 1
        self._rows = []


def _words(label: Mapping[str, Any] | None) -> str:
    """A card's label for a list: where it is active, and what comes next."""
    return " ".join(filter(None, (label.get("short"), label.get("output")))) if label else ""


def peaks(card: dict[str, Any], n: int = 3) -> list[str]:
    """The tokens on which a card's top examples peak, the strongest first, each once."""
    tokens = [e["tokens"][e["end"]] for e in card.get("examples", ()) if e["group"] == "top"]
    return list(dict.fromkeys(tokens))[:n]


def _write_examples(folder: Path, graph: FeatureGraph | None, examples: EdgeExamples) -> dict[tuple[str, str], int]:
    """Write the examples of edges and return the chunk that each edge's are in."""
    keys = {(str(cause), str(target)): (cause, target) for cause, target in examples}
    edges = [(str(edge.cause), str(edge.target)) for edge in graph.edges] if graph else []
    if unknown := sorted(set(keys) - set(edges)):
        raise UserError(f"there are examples of the edge {' -> '.join(unknown[0])}, which the graph does not have")
    known = [edge for edge in edges if edge in keys]
    where = {}
    for number, start in enumerate(range(0, len(known), EXAMPLES)):
        chunk = known[start : start + EXAMPLES]
        value = [
            {"cause": a, "target": b, "examples": _brief(examples[keys[a, b]], "cause", "target")} for a, b in chunk
        ]
        _write(folder, f"edges-{number:03}", _json(value))
        where |= dict.fromkeys(chunk, number)
    return where


def graph_value(graph: FeatureGraph, labels: Mapping[str, str], where: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """What the page draws: rows from the input up, nodes, edges; `where` gives an edge its chunk of examples."""
    keys = sorted({_row(node.id) for node in graph.nodes})
    streams = {key[3] for key in keys if key[0] == 0}
    groups = [group for group in groups_of(graph) if len(group.layers) == 1]
    nodes = [_node_value(node, labels.get(str(node.id)), keys.index(_row(node.id))) for node in graph.nodes]
    return {
        "target": str(graph.target),
        "rows": [_row_label(key, plain=streams <= {Stream.RESID_POST}) for key in keys],
        "nodes": nodes,
        "edges": [_edge_value(edge, where.get((str(edge.cause), str(edge.target)))) for edge in graph.edges],
        "groups": [(group.name, list(map(str, group.nodes))) for group in groups if len(group.nodes) > 1],
        "facts": {k: v for k, v in graph.facts.items() if isinstance(v, str | int | float | bool)},
    }


def _row(node: NodeId) -> tuple[int, int, int, str]:
    """Sorts from the input up; outputs above all layers."""
    if isinstance(node, Readout):
        return 1, 0, 0, ""
    return 0, node.site.layer, list(Stream).index(node.site.stream), node.site.stream


def _row_label(key: tuple[int, int, int, str], *, plain: bool) -> str:
    if key[0]:
        return "output"
    return f"layer {key[1]}" if plain else f"layer {key[1]} {key[3]}"


def _node_value(node: Node, label: str | None, row: int) -> dict[str, Any]:
    kinds = {ErrorTerm: "error", Readout: "output"}
    return {
        "id": str(node.id),
        "kind": kinds.get(type(node.id), "feature"),
        "row": row,
        "label": node.title or label,
        "lines": [line for line in node.label.lines if line != node.label.short] if node.label else [],
        "promotes": list(node.label.promotes) if node.label else [],
        "density": node.density,
        "n_examples": node.n_examples,
    }


def _edge_value(edge: Edge, chunk: int | None) -> dict[str, Any]:
    return to_plain(edge) | {"solid": edge.solid, "examples": chunk}


def _write(folder: Path, name: str, text: str) -> None:
    write_text(folder / "data" / f"{name}.js", f"subrank.add({json.dumps(name)},\n{text}\n);\n")


def _json(value: Any) -> str:
    """JSON of ASCII characters that is JavaScript and stays inside a script element; no number is infinite."""
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e")


def _brief(examples: Iterable[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """Examples with the activations that shade their tokens to four digits, a third of the text."""
    return [e | {name: [float(f"{value:.4g}") or 0 for value in e[name]] for name in names} for e in examples]


def _finite(value: Any) -> Any:
    """The value with null for numbers that JSON cannot hold: a score of nothing is not a number."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return finite(value) if isinstance(value, float) else value
