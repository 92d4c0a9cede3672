"""A circuit on one prompt: at which tokens its features act there, and which of its edges join them."""

from collections import defaultdict
from dataclasses import dataclass

from circuits.graph import Edge, FeatureGraph, Readout
from circuits.prompt_view.prompt_features import PromptFeatures
from sae_core.sites import FeatureId

MOST = 200
"""Edges that are placed, the strongest."""


@dataclass(frozen=True)
class PlacedEdge:
    """An edge of a circuit from where its cause acts on the prompt to where its target does."""

    cause: FeatureId
    position: int
    target: FeatureId | None
    """None: the readout of the logits, at the prompt's end."""
    target_position: int
    effect: float
    """The circuit's, over its own examples; nothing was ablated on this prompt."""


@dataclass(frozen=True)
class PlacedCircuit:
    """Where the features of a circuit are active on a prompt, and the edges between these places."""

    target: str
    n_features: int
    places: dict[FeatureId, tuple[int, ...]]
    """Of those that are active, by feature."""
    edges: tuple[PlacedEdge, ...]
    """The strongest first."""
    n_edges: int
    """Edges that have places, of which those beyond the strongest are left out."""


def placed(graph: FeatureGraph, prompt: PromptFeatures) -> PlacedCircuit:
    """The circuit on the prompt, which was read with the circuit's features among those that are always kept.

    Towards each place of its target an edge comes from the places at the offsets that the circuit found, or without
    such from the nearest place of its cause, at the same token or before it.
    """
    members, places = set(graph.features()), defaultdict(list)
    for cell in prompt.cells:
        for each in cell.features:
            if each.feature in members:
                places[each.feature].append(cell.position)
    edges = [edge for each in graph.edges for edge in _placed(each, places, len(prompt.tokens) - 1)]
    edges.sort(key=lambda edge: -abs(edge.effect))
    where = {feature: tuple(places[feature]) for feature in sorted(places)}
    return PlacedCircuit(str(graph.target), len(members), where, tuple(edges[:MOST]), len(edges))


def _placed(edge: Edge, places: dict[FeatureId, list[int]], end: int) -> list[PlacedEdge]:
    """The places of an edge; none for one of an error term, which is no feature."""
    if not isinstance(edge.cause, FeatureId) or not isinstance(edge.target, FeatureId | Readout):
        return []
    target = edge.target if isinstance(edge.target, FeatureId) else None
    causes, edges = places.get(edge.cause, []), []
    for at in places.get(target, []) if target else [end]:
        before = [place for place in causes if place <= at]
        offsets = [at - place for place in before]
        chosen = [at - offset for offset, _ in edge.offsets if offset in offsets] or before[-1:]
        edges += [PlacedEdge(edge.cause, place, target, at, edge.effect) for place in chosen]
    return edges
