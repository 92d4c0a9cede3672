"""Circuits for other people's tools: `networkx` node-link JSON, and the graph JSON of circuit-tracer and Neuronpedia.

The second one shows a graph on one prompt: every node stands at a position of it. Our circuits belong to many
examples, so a graph is shown on one of them, or on a prompt chosen to stand for all. Its viewers demand more than its
schema says: a feature's id is `L_F_P` (layer, latent, position) and its number the Cantor pair of L and F; an output's
label without "(p=" stops them; `influence` is cumulative, small for what matters most, and a node without it is hidden.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from circuits.graph import ErrorTerm, FeatureGraph, NodeId, Readout
from circuits.groups import story_of
from circuits.influence import influence
from circuits.shown_prompt import Prompt
from sae_core.codec import to_plain
from sae_core.errors import UserError
from sae_core.sites import FeatureId, Site

FEATURE, ERROR, OUTPUT, TOKEN = "cross layer transcoder", "mlp reconstruction error", "logit", "embedding"
"""Kinds of node; a residual dictionary's latents are called transcoder features, or the viewer does not draw them."""


def cantor(layer: int, index: int) -> int:
    """The number of a feature, (L + F)(L + F + 1) / 2 + F: one for each pair."""
    return (layer + index) * (layer + index + 1) // 2 + index


# ---- networkx --------------------------------------------------------------------------------------


def node_link(graph: FeatureGraph) -> dict[str, Any]:
    """The graph as `networkx.node_link_graph(value, edges="edges")` reads it, with all that nodes and edges say."""
    value = to_plain(graph)
    return {
        "directed": True,
        "multigraph": False,
        "graph": {"target": value["target"], "facts": value["facts"]},
        "nodes": value["nodes"],
        "edges": [
            {"source": edge["cause"]} | {key: field for key, field in edge.items() if key != "cause"}
            for edge in value["edges"]
        ],
    }


# ---- circuit-tracer and Neuronpedia ----------------------------------------------------------------


def neuronpedia(
    graph: FeatureGraph,
    prompt: Prompt,
    *,
    slug: str,
    scan: str,
    effects: Mapping[tuple[NodeId, NodeId], float] | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The graph on one prompt, as circuit-tracer and Neuronpedia read it.

    `scan` is the model's name, `slug` the graph's. Weights are `effects` on this prompt where given, else those of
    the circuit's edges. Layers are the sites' layers, or the sites' ranks where the graph has several streams;
    `generation_settings` says which. Raises `UserError` where the prompt does not carry the graph.
    """
    if not re.fullmatch("[A-Za-z0-9_-]+", slug):
        raise UserError(f"the slug of a graph is a file name of letters, digits, - and _; got {slug!r}")
    layers, n_layers = _layers(graph)
    places = {node.id: prompt.place(node.id) for node in graph.nodes}
    places[graph.target] = places[graph.target] or (len(prompt.tokens) - 1, 0.0)
    shown = {node: place for node, place in places.items() if place is not None}
    weights = {
        (edge.cause, edge.target): (effects or {}).get((edge.cause, edge.target), edge.effect)
        for edge in graph.edges
        if edge.cause in shown and edge.target in shown
    }
    readouts = [node for node in shown if isinstance(node, Readout)]
    outputs = {readout: (rank, 0.0) for rank, readout in enumerate(readouts)} | dict(prompt.outputs)
    cumulative = _cumulative(graph.target, list(shown), weights)
    keys, nodes = {}, []
    for node in graph.nodes:
        if node.id in shown:
            record = _node(node.id, layers, n_layers, shown[node.id][0], outputs)
            record["clerp"] = record["clerp"] or (names or {}).get(str(node.id)) or node.title
            record |= {"influence": cumulative[node.id], "activation": shown[node.id][1]}
            record["is_target_logit"] = isinstance(node.id, Readout) and node.id == graph.target
            keys[node.id] = record["node_id"]
            nodes.append(record)
    members = [(group.name, [keys[node] for node in group.nodes if node in keys]) for group in story_of(graph).groups]
    value = {
        "metadata": _metadata(graph, prompt, slug, scan, layers),
        "qParams": {
            "pinnedIds": [key for _, shown_keys in members for key in shown_keys],
            "supernodes": [[name, *shown_keys] for name, shown_keys in members if len(shown_keys) > 1],
            "linkType": "both",
            "clickedId": keys[graph.target],
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": [
            {"source": keys[cause], "target": keys[target], "weight": float(weight)}
            for (cause, target), weight in weights.items()
        ],
    }
    if len(set(keys.values())) < len(keys):
        raise UserError(f"two readouts of the graph of {graph.target} have one token, by which its viewers name them")
    return value


def _layers(graph: FeatureGraph) -> tuple[dict[Site, int], int]:
    """A number for each site of the graph, and how many layers there are."""
    sites = sorted({node.id.site for node in graph.nodes if not isinstance(node.id, Readout)})
    if len({site.stream for site in sites}) < 2:
        return {site: site.layer for site in sites}, max((site.layer for site in sites), default=-1) + 1
    return {site: rank for rank, site in enumerate(sites)}, len(sites)


def _node(
    node: NodeId, layers: dict[Site, int], n_layers: int, position: int, outputs: Mapping[Readout, tuple[int, float]]
) -> dict[str, Any]:
    """A node's record, its label left empty but for outputs."""
    clerp, probability = "", 0.0
    match node:
        case FeatureId():
            layer, index = layers[node.site], node.index
            key, number, js, kind = f"{layer}_{index}", cantor(layer, index), f"{layer}_{index}-0", FEATURE
        case ErrorTerm():
            layer = layers[node.site]
            key, number, js, kind = f"{layer}_-1", -1, f"{layer}_-1-{position}", ERROR
        case Readout():
            number, probability = outputs[node]
            layer, kind = n_layers + 1, OUTPUT
            key, js, clerp = (
                f"{layer}_{number}",
                f"L_{number}-{position}",
                f'Output "{node.name}" (p={probability:.3f})',
            )
    return {
        "node_id": f"{key}_{position}",
        "feature": number,
        "layer": str(layer),
        "ctx_idx": position,
        "feature_type": kind,
        "token_prob": float(probability),
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": js,
        "clerp": clerp,
    }


def _metadata(graph: FeatureGraph, prompt: Prompt, slug: str, scan: str, layers: dict[Site, int]) -> dict[str, Any]:
    plain = {k: v for k, v in graph.facts.items() if isinstance(v, str | int | float | bool)}
    try:
        our_version = version("subrank")
    except PackageNotFoundError:  # run from a folder without being installed
        our_version = "unknown"
    return {
        "slug": slug,
        "scan": scan,
        "transcoder_list": [],
        "prompt_tokens": list(prompt.tokens),
        "prompt": "".join(prompt.tokens),
        "node_threshold": 1.0,
        "schema_version": 1,
        "info": {"generator": {"name": "subrank", "version": our_version}},
        "generation_settings": plain
        | {
            "target": str(graph.target),
            "weight": "(sum of the target's clean activations - sum with the source ablated) / sum of clean ones",
            "layers": {str(layer): str(site) for site, layer in layers.items()},
        },
    }


def _cumulative(
    target: NodeId, nodes: Sequence[NodeId], weights: Mapping[tuple[NodeId, NodeId], float]
) -> dict[NodeId, float]:
    """Cumulative share of the influence on the target, strongest node first; 0 for the target."""
    total = influence(target, weights)
    whole, cumulative, shares = sum(total.values()) or 1.0, 0.0, {target: 0.0}
    for node in sorted((n for n in nodes if n != target), key=lambda n: -total.get(n, 0.0)):
        cumulative += total.get(node, 0.0) / whole
        shares[node] = min(cumulative, 1.0)
    return shares
