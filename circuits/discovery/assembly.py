"""From the steps of a search to the graph of the circuit."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from circuits.discovery.target_causes import CauseSearch, TargetCauses
from circuits.features.atlas import FeatureAtlas
from circuits.graph import FeatureGraph, Node, NodeId, nodes_of
from sae_core.sites import FeatureId, Site


def assemble(
    search: CauseSearch,
    atlas: FeatureAtlas,
    target: NodeId,
    steps: Sequence[TargetCauses],
    facts: Mapping[str, Any],
    others: Iterable[FeatureId] = (),
) -> FeatureGraph:
    """The graph of all steps, its nodes labelled from the atlas; `facts` say how it was found.

    `others` become nodes whether or not an edge has them.
    """
    edges = tuple(edge for step in steps for edge in step.edges)
    n_examples = {step.target: step.n_examples for step in steps}
    model, last = search.model, Site(search.model.n_layers - 1)

    def labelled(id: NodeId) -> Node:
        if not isinstance(id, FeatureId):
            return Node(id, n_examples=n_examples.get(id, 0))
        direction = search.dictionaries[id.site].directions[id.index]
        return Node(
            id,
            tuple(atlas.responds_to(id, model)),
            float(atlas.sites[id.site].density[id.index]),
            tuple(atlas.promotes(id, direction, model)) if id.site == last else (),
            n_examples.get(id, 0),
            bool(atlas.sites[id.site].sinks[id.index]),
        )

    ids = nodes_of(edges, target)
    ids += [id for id in others if id not in ids]
    measured = {
        "effect": "(sum a_clean - sum a_ablated) / |sum a_clean|",
        "exhaustive": all(edge.certified for edge in edges),
        "targets_asked": len(steps),
        "pairs_run": sum(step.n_pairs for step in steps),
        "audits": [{"target": str(step.target), **audit} for step in steps for audit in step.audits],
    }
    return FeatureGraph(target, tuple(map(labelled, ids)), edges, {**facts, **measured})
