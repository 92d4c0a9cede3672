"""The graph JSON of circuit-tracer and Neuronpedia: what its schema demands, and what its viewer silently drops.

- A feature's id is `L_F_P` (layer, latent, position) and its number the Cantor pair of L and F.
- An output whose text lacks "(p=" stops the viewer.
- `influence` is cumulative, small for what matters most, and a node without it is hidden.
- A feature shown at more than two thirds of the prompt's tokens is deleted, so that a prompt has two at least.

Written from the schema (version 1.0.0) and circuit-tracer's data model.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

FEATURE, ERROR, OUTPUT, TOKEN = "cross layer transcoder", "mlp reconstruction error", "logit", "embedding"
"""Kinds of node; a residual dictionary's latents are called transcoder features, or the viewer does not draw them."""


def cantor(layer: int, index: int) -> int:
    """The number of a feature, (L + F)(L + F + 1) / 2 + F: one for each pair."""
    return (layer + index) * (layer + index + 1) // 2 + index


_NUMBER = (int, float)
_TOP = {"metadata": dict, "qParams": dict, "nodes": list, "links": list}
_METADATA = {"slug": str, "scan": str, "prompt_tokens": list, "prompt": str, "transcoder_list": list}
_QPARAMS = {"pinnedIds": list, "supernodes": list, "linkType": str, "clickedId": str, "sg_pos": str}
_RECORD = {
    "node_id": str,
    "feature": (int, type(None)),
    "layer": (str, int),
    "ctx_idx": int,
    "feature_type": str,
    "jsNodeId": str,
    "clerp": str,
    "influence": (*_NUMBER, type(None)),
}
_OPTIONAL = {
    "token_prob": _NUMBER,
    "is_target_logit": bool,
    "run_idx": int,
    "reverse_ctx_idx": int,
    "activation": (*_NUMBER, type(None)),
}
_LINK = {"source": str, "target": str, "weight": _NUMBER}


def faults(value: Any) -> Iterator[str]:
    """What is wrong with a graph JSON, a line each; nothing for one that every viewer shows whole."""
    found = list(_typed("the graph", value, _TOP))
    if not found:
        found = [*_typed("metadata", value["metadata"], _METADATA), *_typed("qParams", value["qParams"], _QPARAMS)]
        found += [f for i, node in enumerate(value["nodes"]) for f in _typed(f"node {i}", node, _RECORD, _OPTIONAL)]
        found += [f for i, link in enumerate(value["links"]) for f in _typed(f"link {i}", link, _LINK)]
    if not found:
        found = [*_prompt_faults(value), *_node_faults(value), *_link_faults(value)]
    yield from found


def _typed(
    what: str, value: Any, required: Mapping[str, Any], optional: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Keys that are missing and values of a wrong type; a bool is no number, a number is finite."""
    if not isinstance(value, dict):
        yield f"{what} is no object"
        return
    for name, kind in (dict(required) | dict(optional or {})).items():
        if name not in value:
            if name in required:
                yield f"{what} lacks {name!r}"
            continue
        own = value[name]
        wrong = isinstance(own, bool) if kind is not bool else False
        if wrong or not isinstance(own, kind):
            yield f"{what} has {name} = {own!r}, of a wrong type"
        elif isinstance(own, float) and not math.isfinite(own):
            yield f"{what} has {name} = {own!r}, which JSON cannot hold"


def _prompt_faults(value: dict[str, Any]) -> Iterator[str]:
    tokens = value["metadata"]["prompt_tokens"]
    if not all(isinstance(token, str) for token in tokens):
        yield "prompt_tokens holds something that is no text"
    if len(tokens) < 2:
        yield f"the prompt has {len(tokens)} tokens; a viewer shows nothing with fewer than 2"
    slug = value["metadata"]["slug"]
    if not slug or not all(c.isascii() and (c.isalnum() or c in "-_") for c in slug):
        yield f"the slug {slug!r} is no file name of letters, digits, - and _"


def _node_faults(value: dict[str, Any]) -> Iterator[str]:
    tokens, nodes = value["metadata"]["prompt_tokens"], value["nodes"]
    for name in ("node_id", "jsNodeId"):
        groups = Counter((node[name], node["ctx_idx"]) if name == "jsNodeId" else node[name] for node in nodes)
        yield from (f"{count} nodes have {name} {key!r}" for key, count in groups.items() if count > 1)
    for node in nodes:
        if not 0 <= node["ctx_idx"] < len(tokens):
            yield f"{node['node_id']} stands at token {node['ctx_idx']} of {len(tokens)}"
        if node["influence"] is None:
            if node["feature_type"] != OUTPUT:
                yield f"{node['node_id']} has no influence, and is hidden for it"
        elif not 0 <= node["influence"] <= 1:
            yield f"{node['node_id']} has an influence of {node['influence']}; cumulative shares lie from 0 to 1"
        yield from _id_faults(node)
    shares = Counter((str(n["layer"]), n["feature"]) for n in nodes if n["feature_type"] == FEATURE)
    for (layer, feature), count in shares.items():
        if count > 2 / 3 * len(tokens):
            yield f"feature {feature} of layer {layer} stands at {count} of {len(tokens)} tokens; viewers delete it"


def _id_faults(node: dict[str, Any]) -> Iterator[str]:
    """Whether the ids say what the node's own fields say."""
    key, kind, layer, position = node["node_id"], node["feature_type"], str(node["layer"]), str(node["ctx_idx"])
    parts = key.split("_")
    if len(parts) != 3 or parts[2] != position:
        yield f"{key} is no id of a node at position {position}"
        return
    if kind == FEATURE:
        if not (parts[0] == layer and layer.isdecimal() and parts[1].isdecimal()):
            yield f"{key} is no id of a feature of layer {layer}"
        elif node["feature"] != cantor(int(layer), int(parts[1])):
            yield f"{key} has feature = {node['feature']}, not the Cantor pair {cantor(int(layer), int(parts[1]))}"
        elif not node["jsNodeId"].startswith(f"{layer}_{parts[1]}-"):
            yield f"{key} has jsNodeId {node['jsNodeId']!r}"
    elif kind == ERROR:
        if parts[:2] not in ([layer, "-1"], ["0", layer]):  # "0_L_P" is the older form
            yield f"{key} is no id of an error of layer {layer}"
    elif kind == OUTPUT:
        if parts[:2] != [layer, str(node["feature"])] or node["jsNodeId"] != f"L_{parts[1]}-{position}":
            yield f"{key} is no id of the output {node['feature']} above layer {layer}"
        if node["clerp"] and "(p=" not in node["clerp"]:
            yield f"{key} has clerp {node['clerp']!r} without '(p=', which stops the viewer"
    elif kind == TOKEN:
        if parts[0] != "E" or layer != "E":
            yield f"{key} is no id of a token"
    else:
        yield f"{key} has feature_type {kind!r}, which viewers do not draw"


def _link_faults(value: dict[str, Any]) -> Iterator[str]:
    known = {node["node_id"] for node in value["nodes"]}
    for link in value["links"]:
        for end in ("source", "target"):
            if link[end] not in known:
                yield f"a link has {end} {link[end]!r}, which is no node"
    clicked = value["qParams"]["clickedId"]
    if clicked and clicked not in known:
        yield f"clickedId {clicked!r} is no node"
