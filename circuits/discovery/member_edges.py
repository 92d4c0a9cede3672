"""The edges among the members of a given circuit, e.g. of one found by pruning.

At residual sites every member is explained on examples of its own, like the targets of recursion. What blocks write is
read by all later blocks, so that hundreds of pairs are asked for: they are measured on the prompts that the members
were chosen on, where one ablation of a cause shows in all targets (`circuits/effects/member_effects.py`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.discovery.edges import largest_offsets, null_of
from circuits.discovery.target_causes import CauseSearch, TargetCauses
from circuits.effects.ablation_effects import Causes, to_zero
from circuits.effects.exact_routes import Rerun, route
from circuits.effects.member_effects import MemberEffects, Reading
from circuits.effects.target_prompts import TargetPrompts
from circuits.effects.targets import Target
from circuits.features.atlas import Examples
from circuits.graph import DirectSum, Edge, ErrorTerm
from sae_core.sites import FeatureId, Site

FEW = 2
"""Prompts on which a member must be active so that its causes are sought, where the search asks for more."""

SINGLES = 2000
"""Runs in which a cause is ablated at one position only, at most; the strongest causes have theirs first."""


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


@torch.no_grad()
def edges_on(
    search: CauseSearch, members: Mapping[Site, Sequence[int]], prompts: TargetPrompts
) -> Iterator[TargetCauses]:
    """Yield the root, and every member that is active on a few of the prompts, with its causes, as `edges_among`.

    A member is read where it is strongest on a prompt, up to the position at which the root is read.
    """
    measured = _Measured(search, prompts, members)
    few = min(FEW, search.config.min_examples)
    for number, reading in enumerate(measured.effects.readings):
        if reading.n_prompts >= few or not number:
            yield measured.step(number)


class _Measured:
    """All effects among members on prompts, and the edges that they make."""

    def __init__(self, search: CauseSearch, prompts: TargetPrompts, members: Mapping[Site, Sequence[int]]):
        self.search, self.prompts = search, prompts
        config, dictionaries = search.config.edges, search.dictionaries
        self.effects = effects = MemberEffects(
            search.model, dictionaries, prompts.examples, prompts.target, members, search.ablations
        )
        self.total, self.together = effects.total(), effects.together()
        self.direct = effects.direct(self.total)
        self.kept = torch.zeros(self.total.shape[:2], dtype=torch.bool, device=self.total.device)
        for number, reading in enumerate(effects.readings):
            self.kept[self._strongest(reading.effects(self.total[:, number])[0]), number] = True
        self.by_offset = effects.by_offset(self._located()) if config.described else None

    def _strongest(self, effect: Float[Tensor, "causes"]) -> list[int]:
        """The causes that are kept of one target: at each site the largest few, and its error term if it is large."""
        config, kept = self.search.config.edges, []
        least = max(config.min_effect, 1e-12)
        for site in self.effects.sites:
            here = [number for number, cause in enumerate(self.effects.causes) if cause.node.site == site]
            *latents, error = [number if abs(float(effect[number])) >= least else -1 for number in here]
            latents = sorted((n for n in latents if n >= 0), key=lambda n: -abs(float(effect[n])))
            kept += latents[: config.keep] + [error] * (config.errors and error >= 0)
        return kept

    def _located(self) -> Bool[Tensor, "causes targets"]:
        """The kept pairs of which single positions are ablated: those of the causes with the strongest edges."""
        sizes = torch.stack(
            [reading.effects(self.total[:, t])[0] for t, reading in enumerate(self.effects.readings)], 1
        )
        order = (sizes.abs() * self.kept).amax(1).argsort(descending=True, stable=True)
        n_runs = torch.stack([(cause.amount != 0).sum() for cause in self.effects.causes])
        chosen = order[n_runs[order].cumsum(0) <= SINGLES]
        return torch.zeros_like(self.kept).index_copy_(0, chosen, self.kept[chosen])

    def step(self, number: int) -> TargetCauses:
        """The edges of one target, the strongest first."""
        reading = self.effects.readings[number]
        node, config = reading.target.node, self.search.config.edges
        effect, error = reading.effects(self.total[:, number])
        direct, _ = reading.effects(self.direct[:, number])
        active = (self.effects.first <= reading.place).sum(1)
        carried = self.effects.is_carried[:, number]
        is_latent = torch.tensor([isinstance(cause.node, FeatureId) for cause in self.effects.causes])
        nulls = {site: self._near(site, reading) for site in self.effects.sites}
        edges = []
        for u in self.kept[:, number].nonzero()[:, 0].tolist():
            cause, n_prompts = self.effects.causes[u].node, reading.n_prompts
            edge = Edge(cause, node, float(effect[u]), float(error[u]), int(active[u]), n_prompts)
            if isinstance(cause, ErrorTerm):
                edges.append(replace(edge, n_active=n_prompts))
                continue
            alone = float(direct[u]) if config.described and carried[u] else None
            near = nulls[cause.site]
            null = None if near is None else null_of(near, cause.index, config)
            edge = replace(edge, direct=alone, null=null, offsets=self._offsets(u, number))
            edges.append(self.search.with_cosine(edge))
        alone, at_once = float(direct[is_latent].sum()), float(reading.effects(self.together[None, number])[0])
        edges.sort(key=lambda edge: -abs(edge.effect))
        feeds = self.search.model.feeds
        n_pairs = sum(
            n * feeds(cause.node.site, reading.target.site)
            for cause, n in zip(self.effects.causes, active.tolist(), strict=True)
            if isinstance(cause.node, FeatureId)
        )
        sums = DirectSum(alone, at_once - alone)
        return TargetCauses(node, tuple(edges), reading.n_prompts, n_pairs, direct=sums)

    def _offsets(self, u: int, number: int) -> tuple[tuple[int, float], ...]:
        if self.by_offset is None:
            return ()
        total = float(self.effects.readings[number].clean.sum().abs())
        return largest_offsets(self.by_offset[u, number] / total, self.search.config.edges.min_effect)

    def _near(self, site: Site, reading: Reading) -> Causes | None:
        """The causes of a target at a site along a closed form, which many random directions need."""
        gap, into = reading.target.site.layer - site.layer, reading.target.site
        if not self.search.config.edges.n_null or gap > 1 or not self.search.model.feeds(site, into):
            return None
        prompts = (reading.place >= 0).nonzero()[:, 0]
        examples = Examples(self.effects.tokens[prompts], reading.place[prompts], reading.clean[prompts].float())
        way = route(self.search.model, site, reading.target, examples)
        if isinstance(way, Rerun):
            return None
        return Causes.along(way, self.search.dictionaries[site], self.search.ablations.get(site, to_zero))
