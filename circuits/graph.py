"""A circuit: features and the edges between them, as numbers and names only."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import networkx

from circuits.features.feature_label import FeatureLabel
from sae_core.errors import UserError
from sae_core.sites import FeatureId, Site, Stream


@dataclass(frozen=True)
class ErrorTerm:
    """The error term of the dictionary at a site, x - x_hat; `error.resid_post.3` as text."""

    site: Site

    def __str__(self) -> str:
        return f"error.{self.site}"

    @classmethod
    def parse(cls, text: str) -> "ErrorTerm":
        """The error term named by `str(term)`; raises `UserError` on any other text."""
        if not text.startswith("error."):
            raise UserError(f"{text!r} is no error term; error terms read like 'error.resid_post.3'")
        return cls(Site.parse(text.removeprefix("error.")))


@dataclass(frozen=True)
class Readout:
    """A number read from the logits; `logit: she - he` as text."""

    name: str

    def __str__(self) -> str:
        return f"logit: {self.name}"

    @classmethod
    def parse(cls, text: str) -> "Readout":
        """The readout named by `str(readout)`; raises `UserError` on any other text."""
        if not text.startswith("logit: "):
            raise UserError(f"{text!r} is no readout; readouts read like 'logit: she - he'")
        return cls(text.removeprefix("logit: "))


NodeId = FeatureId | ErrorTerm | Readout
"""What can stand in a circuit; JSON has its text (`sae_core.codec`)."""


def parse_node(text: str) -> NodeId:
    """The node named by `str(node)`; raises `UserError` on any other text."""
    for kind, prefix in ((Readout, "logit: "), (ErrorTerm, "error.")):
        if text.startswith(prefix):
            return kind.parse(text)
    if "_" not in text:
        raise UserError(f"{text!r} is no node; nodes read like '5_2079', 'error.resid_post.3' or 'logit: she - he'")
    return FeatureId.parse(text)


@dataclass(frozen=True)
class Edge:
    """`cause` supports `target` (positive effect) or inhibits it (negative)."""

    cause: NodeId
    target: NodeId
    effect: float
    """(sum a_clean - sum a_ablated) / |sum a_clean| over the target's examples; total unless it says otherwise."""
    error: float
    """Standard error of the effect over the examples."""
    n_active: int
    """Examples of the target on which the cause is active."""
    n_examples: int
    cosine: float | None = None
    """Cosine of the two directions."""
    null: float | None = None
    """99th percentile of |effect| when the same codes are taken along random directions; None if not drawn."""
    direct: float | None = None
    """The part of the effect that no block in between carries; None between neighbours, where it is all."""
    certified: bool = True
    """Whether the edge is what exhaustive ablation finds; False where a screen chose what was ablated."""
    offsets: tuple[tuple[int, float], ...] = ()
    """Effects of ablating the cause at one position only, by how far before the target's; the largest few."""

    @property
    def solid(self) -> bool:
        """Whether the effect stands out from random directions."""
        return self.null is None or abs(self.effect) > self.null


@dataclass(frozen=True)
class DirectSum:
    """The direct effects of a circuit's members on one of its nodes, and what they add up to."""

    alone: float
    """The sum of the direct effects, each member ablated alone."""
    remainder: float
    """The direct effect of all members ablated together, less that sum; 0 where the node's block is linear."""


@dataclass(frozen=True)
class Node:
    """A member of a circuit and what is known of it."""

    id: NodeId
    density: float | None = None
    n_examples: int = 0
    """Examples on which its causes were sought; 0 if they were not."""
    sink: bool = False
    """Whether it is mostly active where a context begins or a norm is massive: part of an attention sink."""
    name: str = ""
    """What a person or an explainer (`names.json`) calls it."""
    label: FeatureLabel | None = None
    """In words; None for what is no feature, and in graphs of earlier versions."""
    direct: DirectSum | None = None
    """What reaches it directly from the members of its circuit; None where that was not measured."""

    @property
    def title(self) -> str:
        """The node in a few words, below its id: its name, else its label; empty where it has neither."""
        return self.name or (self.label.short if self.label else "")

    @property
    def layer(self) -> int | None:
        """The layer it is in; None for what is read from the logits."""
        return None if isinstance(self.id, Readout) else self.id.site.layer


@dataclass(frozen=True)
class FeatureGraph:
    """Nodes and edges of a circuit, the target first; `to_plain` and `from_plain` make JSON of it and read it."""

    target: NodeId
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    """How it was found: settings and counts, plain values only."""

    def networkx(self) -> networkx.DiGraph:
        """The same graph as a `networkx` one, nodes keyed by their names."""
        graph = networkx.DiGraph()
        for node in self.nodes:
            graph.add_node(str(node.id), layer=node.layer, label=node.title)
        for edge in self.edges:
            graph.add_edge(str(edge.cause), str(edge.target), effect=edge.effect)
        return graph

    def labelled(self, labels: Mapping[FeatureId, FeatureLabel]) -> "FeatureGraph":
        """The graph with labels for its features."""
        nodes = (replace(n, label=labels.get(n.id)) if isinstance(n.id, FeatureId) else n for n in self.nodes)
        return replace(self, nodes=tuple(nodes))

    def direct_line(self) -> str | None:
        """What the direct effects on its nodes add up to, in words; None where they were not measured."""
        sums = {node.id: node.direct for node in self.nodes if node.direct is not None}
        if self.target not in sums:
            return None
        root, sizes = sums[self.target], [abs(each.remainder) for each in sums.values() if each.alone]
        return (
            f"the members' direct effects on {self.target} add up to {root.alone:.2f}, ablated together they take "
            f"{root.alone + root.remainder:.2f}: remainder {root.remainder:+.2f}, 0 were its block linear (mean size "
            f"over {len(sizes)} nodes {sum(sizes) / max(1, len(sizes)):.2f})"
        )

    def features(self) -> list[FeatureId]:
        """The features among the nodes."""
        return [node.id for node in self.nodes if isinstance(node.id, FeatureId)]


def nodes_of(edges: Iterable[Edge], target: NodeId) -> list[NodeId]:
    """The target and every node of `edges`: what is read from the logits first, then later layers before earlier."""
    return sorted({target, *(end for edge in edges for end in (edge.cause, edge.target))}, key=depth)


def depth(node: NodeId) -> tuple:
    """Nodes sort by it: what is read from the logits first, then later layers before earlier."""
    if isinstance(node, Readout):
        return (-1, node.name)
    rank = list(Stream).index(node.site.stream)
    return (0, -node.site.layer, -rank, isinstance(node, ErrorTerm), -getattr(node, "index", 0))
