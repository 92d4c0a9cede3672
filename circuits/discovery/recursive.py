"""From a target to the circuit that drives it (Cunningham et al. 2023, section on automatic circuits).

Take activating examples of the target, ablate every feature that is active on them at an earlier site, keep the
few with the largest effect, and do the same for each of these, down to the lowest site. Every feature gets examples
of its own, the cause with the strongest edge comes first, and no feature is searched twice.

Edges between neighbours are what exhaustive ablation finds, and say `certified`. Where more than one block lies
between, a screen (`circuits/effects/screens.py`) proposes the latents that are ablated, unless the search is set to
be exhaustive.
"""

import heapq
from collections.abc import Iterable, Iterator
from itertools import count

from circuits.discovery.target_causes import CauseSearch, TargetCauses
from circuits.effects.targets import Target
from circuits.features.atlas import Examples
from circuits.graph import NodeId
from sae_core.sites import FeatureId


def discover(
    search: CauseSearch, root: Target, examples: Examples | None = None, *, done: Iterable[TargetCauses] = ()
) -> Iterator[TargetCauses]:
    """Yield each target with its kept edges; of the causes waiting, the one with the strongest edge is next.

    `examples` are the root's, where `search.source` does not give them. Steps in `done`, of an earlier run of the
    same search, are taken over as they are. A cause with too few examples is skipped, and one of an attention sink
    (`search.sinks`); a root with too few is a `UserError`.
    """
    known = {step.target: step for step in done}
    arrivals = count()  # breaks ties: of equally strong edges the earlier comes first
    waiting: list[tuple[float, int, NodeId, int]] = [(-1.0, next(arrivals), root.node, 0)]
    searched: set[NodeId] = set()
    while waiting and len(searched) < search.config.max_targets:
        _, _, node, depth = heapq.heappop(waiting)
        if node in searched:
            continue
        step = known.get(node)
        if step is None and node == root.node:
            step = search.causes_of_root(root, examples)
        elif step is None and isinstance(node, FeatureId) and node not in search.sinks:  # error terms have no causes
            step = search.causes_of(search.feature(node))
        if step is None:  # nothing below it, or too few examples
            continue
        searched.add(node)
        yield step
        if search.config.depth is not None and depth + 1 >= search.config.depth:
            continue
        for edge in step.edges:
            heapq.heappush(waiting, (-abs(edge.effect), next(arrivals), edge.cause, depth + 1))
