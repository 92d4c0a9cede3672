"""The circuit of a resolved request: which features, which edges, and how they were found.

resolved = resolve(model, dictionaries, survey(model, saes, contexts), request, config)
sufficient = sufficient_features(resolved)
steps = list(circuit_steps(resolved, sufficient))
circuit = circuit_of(resolved, sufficient, steps)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from circuits.discovery.assembly import assemble
from circuits.discovery.edges import SearchMode
from circuits.discovery.member_edges import edges_among, edges_on
from circuits.discovery.pruning import prune_at
from circuits.discovery.recursive import discover
from circuits.discovery.request import ResolvedRequest
from circuits.discovery.target_causes import TargetCauses
from circuits.graph import FeatureGraph
from circuits.scoring.ablations import MeanAblation
from circuits.scoring.circuit_runs import by_site, covered_sites
from sae_core.progress import OnProgress, silent
from sae_core.sites import FeatureId


@dataclass(frozen=True)
class Circuit:
    """A graph, and the features that pruning left."""

    graph: FeatureGraph
    sufficient: tuple[FeatureId, ...] = ()
    """The sufficient features, most needed first; empty where the circuit was found by recursion."""


def sufficient_features(resolved: ResolvedRequest, on_progress: OnProgress = silent) -> list[FeatureId]:
    """The features that pruning leaves, most needed first; none where the request is for recursion (`n_nodes` 0)."""
    request = resolved.request
    if not request.n_nodes:
        return []
    model, contexts, covered, prompts = (
        resolved.search.model,
        resolved.atlas.contexts,
        resolved.covered,
        resolved.prompts(),
    )
    means = None
    if resolved.on_prompts and prompts.corrupted is None:  # what the survey has read is not read again
        sites = covered_sites(covered, prompts.target)
        means = MeanAblation.surveyed(resolved.atlas.survey, contexts, sites)
    n, cover = request.n_nodes, request.cover
    return prune_at(model, covered, prompts, contexts, n, cover=cover, ablation=means, on_progress=on_progress)


def circuit_steps(
    resolved: ResolvedRequest, sufficient: Sequence[FeatureId] = (), *, done: Iterable[TargetCauses] = ()
) -> Iterator[TargetCauses]:
    """Yield the edges target by target: among the sufficient features where there are some, else by recursion.

    Steps in `done`, of an interrupted run of the same search, are taken over.
    """
    if sufficient:
        members = by_site(sufficient)
        if resolved.on_prompts:
            return edges_on(resolved.search, members, resolved.prompts())
        return edges_among(resolved.search, members, resolved.target, resolved.examples, done=done)
    return discover(resolved.search, resolved.target, resolved.examples, done=done)


def circuit_of(resolved: ResolvedRequest, sufficient: Sequence[FeatureId], steps: Sequence[TargetCauses]) -> Circuit:
    """The circuit that the steps make, every sufficient feature a node of it."""
    facts = how_found(resolved, sufficient)
    graph = assemble(resolved.atlas, resolved.target.node, steps, facts, sufficient)
    return Circuit(graph, tuple(sufficient))


def how_found(resolved: ResolvedRequest, sufficient: Sequence[FeatureId]) -> dict[str, Any]:
    """The settings that a graph states of itself."""
    request, config = resolved.request, resolved.search.config
    facts = {
        "ablation": f"{request.ablation}, at all positions up to the target's, error term kept",
        "reach": str(config.reach),
        "search": str(config.edges.search),
        "random_directions": 0 if config.edges.search is SearchMode.FIRST_ORDER else config.edges.n_null,
        "nodes": f"{len(sufficient)} that suffice" if sufficient else "found by recursion",
    }
    if sufficient:
        outside = "the corrupted prompts' codes" if resolved.corrupted is not None else "means"
        chosen = f"all else at {request.cover} layers set to {outside}, errors too"
        facts |= {"among": "members", "chosen_against": chosen}
    return facts
