"""What is wrong with a graph JSON of circuit-tracer and Neuronpedia: by its schema, and by what its viewer demands.

- A feature's id is `L_F_P` (layer, latent, position) and its number the Cantor pair of L and F.
- An output's label without "(p=" stops the viewer.
- `influence` is cumulative, small for what matters most, and a node without it is hidden.
- A supernode is a name and the ids of nodes, which are shown only where they are pinned.
- A feature shown at more than two thirds of the prompt's tokens is deleted, so a prompt needs at least two.

`neuronpedia.schema.json` was written from the published schema (version 1.0.0) and circuit-tracer's data model.
"""

import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from circuits.exports import ERROR, FEATURE, OUTPUT, TOKEN, cantor


def faults(value: Any) -> Iterator[str]:
    """What is wrong with a graph JSON, a line each; nothing for one that every viewer shows whole."""
    errors = sorted(_validator().iter_errors(value), key=lambda error: error.json_path)
    yield from map(_line, errors)
    if errors:
        return
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:  # infinities and NaN, which the schema's "number" lets pass
        yield f"JSON cannot hold it: {error}"
        return
    yield from _node_faults(value)
    yield from _link_faults(value)


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(Path(__file__).with_name("neuronpedia.schema.json").read_text("utf-8")))


def _line(error) -> str:
    """Where the fault is, and what is wrong: the schema's own words for the property, if it has some."""
    words = error.schema.get("description", error.message)
    instance = f" is {error.instance!r:.60}" if "description" in error.schema else ""
    return f"{error.json_path.removeprefix('$.')}{instance}: {words:.200}"


def _node_faults(value: dict[str, Any]) -> Iterator[str]:
    tokens, nodes = value["metadata"]["prompt_tokens"], value["nodes"]
    for name in ("node_id", "jsNodeId"):
        groups = Counter((node[name], node["ctx_idx"]) if name == "jsNodeId" else node[name] for node in nodes)
        yield from (f"{count} nodes have {name} {key!r}" for key, count in groups.items() if count > 1)
    for node in nodes:
        if node["ctx_idx"] >= len(tokens):
            yield f"{node['node_id']} stands at token {node['ctx_idx']} of {len(tokens)}"
        yield from _id_faults(node)
    shares = Counter((str(n["layer"]), n["feature"]) for n in nodes if n["feature_type"] == FEATURE)
    for (layer, feature), count in shares.items():
        if count > 2 / 3 * len(tokens):
            yield f"feature {feature} of layer {layer} stands at {count} of {len(tokens)} tokens; viewers delete it"


def _id_faults(node: dict[str, Any]) -> Iterator[str]:
    """Whether the ids say what the node's other fields say."""
    key, kind, layer, position = node["node_id"], node["feature_type"], str(node["layer"]), str(node["ctx_idx"])
    parts = key.split("_")
    if len(parts) != 3 or parts[2] != position:
        yield f"{key} is no id of a node at position {position}"
    elif kind == FEATURE:
        if not (parts[0] == layer and layer.isdecimal() and parts[1].isdecimal()):
            yield f"{key} is no id of a feature of layer {layer}"
        elif node["feature"] != cantor(int(layer), int(parts[1])):
            yield f"{key} has feature = {node['feature']}, not the Cantor pair {cantor(int(layer), int(parts[1]))}"
        elif not node["jsNodeId"].startswith(f"{layer}_{parts[1]}-"):
            yield f"{key} has jsNodeId {node['jsNodeId']!r}"
    elif kind == ERROR and parts[:2] not in ([layer, "-1"], ["0", layer]):  # "0_L_P" is the older form
        yield f"{key} is no id of an error term of layer {layer}"
    elif kind == OUTPUT and (
        parts[:2] != [layer, str(node["feature"])] or node["jsNodeId"] != f"L_{parts[1]}-{position}"
    ):
        yield f"{key} is no id of the output {node['feature']} above layer {layer}"
    elif kind == TOKEN and (parts[0] != "E" or layer != "E"):
        yield f"{key} is no id of a token"


def _link_faults(value: dict[str, Any]) -> Iterator[str]:
    known = {node["node_id"] for node in value["nodes"]}
    for link in value["links"]:
        yield from (
            f"a link has {end} {link[end]!r}, which is no node"
            for end in ("source", "target")
            if link[end] not in known
        )
    pinned = value["qParams"]["pinnedIds"]
    yield from (f"pinned {key!r} is no node" for key in pinned if key not in known)
    for name, *members in value["qParams"]["supernodes"]:
        yield from (f"supernode {name!r} has {key!r}, which is not pinned" for key in members if key not in pinned)
    clicked = value["qParams"]["clickedId"]
    if clicked and clicked not in known:
        yield f"clickedId {clicked!r} is no node"
