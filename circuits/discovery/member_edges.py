"""The edges among the members of a given circuit, e.g. of one found by pruning."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from circuits.discovery.target_causes import CauseSearch, TargetCauses
from circuits.effects.targets import Target
from circuits.features.atlas import Examples
from sae_core.sites import FeatureId, Site


def edges_among(
    search: CauseSearch,
    members: Mapping[Site, Sequence[int]],
    root: Target,
    examples: Examples | None = None,
    *,
    done: Iterable[TargetCauses] = (),
) -> Iterator[TargetCauses]:
    """Yield the root, and every member that has enough examples, with its strongest causes among the members.

    A member may be in no edge. `examples` are the root's, where `search.source` does not give them; steps in `done`
    are taken over. All members are ablated, however far away.
    """
    known = {step.target: step for step in done}
    step = known.get(root.node) or search.causes_of_root(root, examples, among=members)
    if step is not None:
        yield step
    for site in sorted(members, reverse=True):
        for latent in members[site]:
            feature = FeatureId(site, latent)
            step = known.get(feature) or search.causes_of(search.feature(feature), among=members)
            if step is not None:
                yield step
