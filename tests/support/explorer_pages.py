"""Graphs and cards for tests of the explorer."""

import random
from collections.abc import Iterator
from typing import Any

from chromium import Page

from circuits.features.feature_label import FeatureLabel
from circuits.graph import Edge, FeatureGraph, Node
from sae_core.sites import FeatureId

HOSTILE = (
    "<script>boom=1</script>",
    "</script><script>boom=1</script>",
    "\"'><img src=x onerror=boom=1>",
    "-->&lt;&amp;<!--",
    "${boom=1}`",
    "\u2028boom=1//\u2029",
    "\u202eevil\u202c",
    "שלום",
    "👩‍👩‍👧🏽",
    "\n\t\r\x00",
    "\ud83d",
    "__proto__",
    "",
    " ",
)


def card(name: str, label: str | None = None, word: str = " she", **changes: Any) -> dict[str, Any]:
    """A card as `circuits/features/card.py` makes them."""
    numbers = {"precision": 0.9, "recall": 0.8, "correlation": 0.7}
    control = {"precision": 0.1, "recall": 0.2, "correlation": 0.0}
    value = {
        "id": name,
        "site": "resid_post.0",
        "index": 1,
        "density": 0.01,
        "mean_active": 2.0,
        "max": 4.0,
        "first_position": 0.0,
        "norm_share": 0.1,
        "n_tokens": 1000,
        "label": label and FeatureLabel(label, "", 0.9, 0.1).to_json(),
        "rule": label and {"text": label, "kind": "pattern", **numbers, "control": control},
        "examples": [
            {"group": "top", "tokens": [" Then", word, "."], "activations": [0.0, 4.0, 1.0], "end": 1},
            {"group": "0.75-1.0", "tokens": ["x", word], "activations": [0.0, 3.0], "end": 1},
        ],
        "histogram": {
            "edges": [0.0, 2.0, 4.0],
            "tokens": [{"token": word, "counts": [3, 1]}],
            "other": [2, 0],
            "zero": 0.99,
        },
        "drops": {"token": word, "edges": [0.0, 1.0, 2.0], "counts": [1, 2], "mean": 1.2},
        "promotes": [[word, 1.5]],
        "suppresses": [[" he", -0.5]],
        "near": [{"id": "0_1", "cosine": 0.5}],
    }
    return value | changes


def edge(cause: str, target: str, effect: float, **changes: Any) -> Edge:
    return Edge(
        FeatureId.parse(cause),
        FeatureId.parse(target),
        effect,
        **({"error": 0.01, "n_active": 3, "n_examples": 4, "null": 0.05} | changes),
    )


def node(name: str, *words: str) -> Node:
    return Node(FeatureId.parse(name), 0.01, label=FeatureLabel(" ".join(words), promotes=words) if words else None)


def example() -> FeatureGraph:
    """Three layers; effects of 0.1 to 0.8, one of them negative, one no stronger than its control."""
    edges = (
        edge("1_1", "2_1", 0.8),
        edge("1_2", "2_1", -0.4),
        edge("0_1", "1_1", 0.2),
        edge("0_2", "1_1", 0.1, null=0.3),
        edge("0_2", "1_2", 0.6),
        edge("0_1", "2_1", 0.3, certified=False),
    )
    return FeatureGraph(edges[0].target, tuple(map(node, ("2_1", "1_1", "1_2", "0_1", "0_2"))), edges, {"depth": 3})


def example_cards() -> Iterator[dict[str, Any]]:
    for name in ("0_1", "0_2", "1_1", "1_2", "2_1"):
        yield card(name, f"label of {name}", f" word{name}")


def large(per_row: int, n_rows: int, seed: int) -> FeatureGraph:
    """Rows of nodes with arrows from the row below and some from further down."""
    draw = random.Random(seed)
    rows = [[f"{layer}_{i}" for i in range(per_row if layer < n_rows - 1 else 2)] for layer in range(n_rows)]
    edges = [
        edge(cause, target, draw.uniform(-0.5, 1))
        for layer in range(1, n_rows)
        for target in rows[layer]
        for cause in draw.sample(rows[layer - 1], min(3, len(rows[layer - 1])))
        + draw.sample(rows[max(0, layer - 3)], 1)
    ]
    unique = {(str(e.cause), str(e.target)): e for e in edges}
    nodes = tuple(node(name) for row in reversed(rows) for name in row)
    return FeatureGraph(nodes[0].id, nodes, tuple(unique.values()))


# ---- in a browser ----------------------------------------------------------------------------------


def counted(page: Page) -> int:
    """Arrows that are drawn."""
    return sum(page.all(".arrows .edge", "e.getClientRects().length"))


def slide(page: Page, value: int) -> None:
    events = "['input', 'change'].forEach(kind => e.dispatchEvent(new Event(kind, {bubbles: true})))"
    page.all("#threshold", f"(e.value = {value}, {events})")


def panel(page: Page) -> str:
    return page.run("document.querySelector('#panel').innerText")
