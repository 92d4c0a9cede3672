"""A circuit: features and the edges between them, as numbers and names only."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import networkx

from sae_core.sites import FeatureId


@dataclass(frozen=True)
class Edge:
    """`cause` supports `target` (positive effect) or holds it down (negative)."""

    cause: FeatureId
    target: FeatureId
    effect: float
    """(sum a_clean - sum a_ablated) / sum a_clean over the target's examples."""
    n_active: int
    """Examples of the target on which the cause is active."""
    n_examples: int
    cosine: float
    """Cosine of the two directions."""


@dataclass(frozen=True)
class Node:
    """A feature and what is known of it."""

    feature: FeatureId
    responds_to: tuple[str, ...]
    """Tokens on which its strongest examples peak."""
    density: float
    promotes: tuple[str, ...] = ()
    """Tokens whose logits it raises; in the last layer only."""
    n_examples: int = 0
    """Examples on which its causes were sought; 0 if it was not asked."""


@dataclass(frozen=True)
class FeatureGraph:
    """Nodes and edges of a circuit, the target first."""

    target: FeatureId
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    """How it was found."""

    def networkx(self) -> networkx.DiGraph:
        """The same graph as a `networkx` one, nodes keyed by the features' names."""
        graph = networkx.DiGraph()
        for node in self.nodes:
            graph.add_node(str(node.feature), layer=node.feature.site.layer, responds_to=" ".join(node.responds_to))
        for edge in self.edges:
            graph.add_edge(str(edge.cause), str(edge.target), effect=edge.effect)
        return graph

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the inverse."""
        return {
            "target": str(self.target),
            "nodes": [_plain(node) for node in self.nodes],
            "edges": [_plain(edge) for edge in self.edges],
            "facts": self.facts,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "FeatureGraph":
        def features(record: dict[str, Any], *names: str) -> dict[str, Any]:
            return record | {name: FeatureId.parse(record[name]) for name in names}

        def node(record: dict[str, Any]) -> Node:
            words = {name: tuple(record[name]) for name in ("responds_to", "promotes")}
            return Node(**(features(record, "feature") | words))

        return cls(
            FeatureId.parse(value["target"]),
            tuple(map(node, value["nodes"])),
            tuple(Edge(**features(record, "cause", "target")) for record in value["edges"]),
            value["facts"],
        )


def _plain(record: Node | Edge) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in record.__dataclass_fields__}
    return {
        name: str(v) if isinstance(v, FeatureId) else list(v) if isinstance(v, tuple) else v
        for name, v in values.items()
    }


def features_of(edges: Iterable[Edge], target: FeatureId) -> list[FeatureId]:
    """The target and every feature of `edges`, later layers first."""
    found = {target, *(e.cause for e in edges), *(e.target for e in edges)}
    return sorted(found, reverse=True)
