"""From the steps of a search to the graph of the circuit."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from circuits.discovery.target_causes import TargetCauses
from circuits.features.atlas import FeatureAtlas
from circuits.graph import FeatureGraph, Node, NodeId, nodes_of
from sae_core.sites import FeatureId


def assemble(
    atlas: FeatureAtlas,
    target: NodeId,
    steps: Sequence[TargetCauses],
    facts: Mapping[str, Any],
    others: Iterable[FeatureId] = (),
) -> FeatureGraph:
    """The graph of all steps; `facts` say how it was found. Its nodes have no labels (`FeatureGraph.labelled`).

    `others` become nodes whether or not an edge has them.
    """
    edges = tuple(edge for step in steps for edge in step.edges)
    searched = {step.target: step for step in steps}

    def node(id: NodeId) -> Node:
        step = searched.get(id)
        n_examples, direct = (step.n_examples, step.direct) if step else (0, None)
        if not isinstance(id, FeatureId):
            return Node(id, n_examples=n_examples, direct=direct)
        site = atlas.sites[id.site]
        return Node(id, float(site.density[id.index]), n_examples, bool(site.sinks[id.index]), direct=direct)

    ids = nodes_of(edges, target)
    ids += [id for id in others if id not in ids]
    measured = {
        "effect": "(sum a_clean - sum a_ablated) / |sum a_clean|",
        "exhaustive": all(edge.certified for edge in edges),
        "targets_asked": len(steps),
        "pairs_run": sum(step.n_pairs for step in steps),
        "audits": [{"target": str(step.target), **audit} for step in steps for audit in step.audits],
    }
    return FeatureGraph(target, tuple(map(node, ids)), edges, {**facts, **measured})
