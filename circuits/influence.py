"""How much of a target goes back to each node of a circuit, over all paths."""

from collections import defaultdict
from collections.abc import Mapping

from circuits.graph import FeatureGraph, NodeId
from sae_core.sites import FeatureId


def influence(target: NodeId, weights: Mapping[tuple[NodeId, NodeId], float]) -> dict[NodeId, float]:
    """The influence of each node that reaches the target, by (cause, target) weights.

    It is the sum over paths to the target of the product of |weight| / sum |weights into the same node|: with A these
    shares, e A + e A^2 + ..., which ends since a circuit has no cycles. None has more than 1: paths pass it once.
    """
    into: defaultdict[NodeId, float] = defaultdict(float)
    for (_, end), weight in weights.items():
        into[end] += abs(weight)
    total: defaultdict[NodeId, float] = defaultdict(float)
    front = {target: 1.0}  # e A^k, after k steps against the arrows
    for _ in into:
        reached: defaultdict[NodeId, float] = defaultdict(float)
        for (start, end), weight in weights.items():
            if front.get(end) and into[end]:
                reached[start] += front[end] * abs(weight) / into[end]
        for node, share in reached.items():
            total[node] += share
        if not (front := reached):
            break
    return dict(total)


def by_influence(graph: FeatureGraph) -> list[FeatureId]:
    """The features of a circuit: its target, if it is one, then the others by their influence on it."""
    weights = influence(graph.target, {(edge.cause, edge.target): edge.effect for edge in graph.edges})
    return sorted(graph.features(), key=lambda node: (node != graph.target, -weights.get(node, 0.0)))
