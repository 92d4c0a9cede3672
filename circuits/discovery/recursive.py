"""From a target to the circuit that drives it (Cunningham et al. 2023, section on automatic circuits).

Find activating examples of the target, ablate every feature that is active on them at an earlier site, keep
the few with the largest effect, and ask the same of each, down to the lowest site. Every feature gets
examples of its own, the cause with the strongest edge is asked first, and no feature is asked twice.

Edges between neighbours are what exhaustive ablation finds, and say `certified`. Where more than one block
lies between, a screen (`circuits/effects/screens.py`) proposes the latents that are ablated, unless all are asked for.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from circuits.discovery.edges import EdgeConfig, find_edges
from circuits.effects.ablation_effects import Ablation, Causes, to_zero
from circuits.effects.targets import FeatureTarget, Target
from circuits.features.atlas import Examples, ExampleSource, FeatureAtlas
from circuits.graph import (
    Edge,
    ErrorTerm,
    FeatureGraph,
    Node,
    NodeId,
    nodes_of,
)
from sae_core.codec import from_plain, to_plain
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site, Stream

MIN_EXAMPLES = 16


class Reach(StrEnum):
    """Which sites causes are sought at."""

    ADJACENT = "adjacent"
    """The nearest earlier residual site that has a dictionary."""
    ALL = "all"
    """Every earlier site that has one."""


@dataclass(frozen=True)
class DiscoveryConfig:
    """How far to go."""

    edges: EdgeConfig = field(default_factory=EdgeConfig)
    n_examples: int = MIN_EXAMPLES
    """Examples per target, each from another context."""
    least: int = MIN_EXAMPLES
    """With fewer a feature is not asked for its causes."""
    max_targets: int = 15
    depth: int | None = None
    """Edges from the root to the last causes, at most."""
    reach: Reach = Reach.ADJACENT


@dataclass(frozen=True)
class Asked:
    """One target whose causes were sought."""

    target: NodeId
    edges: tuple[Edge, ...]
    n_examples: int
    n_pairs: int
    audits: tuple[dict[str, Any], ...] = ()
    """What the audit found, of each site at which not all latents were ablated."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the inverse."""
        return to_plain(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Asked":
        """The step that `to_json` made `value` of."""
        return from_plain(cls, value)


@dataclass(frozen=True, eq=False)
class Discovery:
    """All that does not change from target to target."""

    model: LanguageModel
    dictionaries: Mapping[Site, Dictionary]
    source: ExampleSource
    config: DiscoveryConfig = field(default_factory=DiscoveryConfig)
    ablations: Mapping[Site, Ablation] = field(default_factory=dict)
    """What the latents of a site are set to, where it is not zero."""
    among: Mapping[Site, Sequence[int]] | None = None
    """The latents that may be causes, by site; None allows all."""

    def run(self, root: Target, examples: Examples | None = None, *, done: Iterable[Asked] = ()) -> Iterator[Asked]:
        """Yield each target with its kept edges; of the causes waiting, the one with the strongest edge is next.

        `examples` are the root's, if `source` does not give them. Steps in `done`, of an earlier run of the same
        search, are taken over as they are. A cause with too few examples is not asked; for the root that is
        a `UserError`.
        """
        known = {step.target: step for step in done}
        queue: list[tuple[float, int, NodeId, int]] = [(-1.0, 0, root.node, 0)]
        asked: set[NodeId] = set()
        n_waited = 0
        while queue and len(asked) < self.config.max_targets:
            _, _, node, depth = heapq.heappop(queue)
            if node in asked or isinstance(node, ErrorTerm):
                continue
            target = root if node == root.node else FeatureTarget(node, self.dictionaries[node.site])
            step = known.get(node) or self._ask(
                target, examples if node == root.node else None, is_root=node == root.node
            )
            if step is None:
                continue
            asked.add(node)
            yield step
            if self.config.depth is not None and depth + 1 >= self.config.depth:
                continue
            for edge in step.edges:
                n_waited += 1
                heapq.heappush(queue, (-abs(edge.effect), n_waited, edge.cause, depth + 1))

    def within(
        self,
        members: Mapping[Site, Sequence[int]],
        root: Target,
        examples: Examples | None = None,
        done: Iterable[Asked] = (),
    ) -> Iterator[Asked]:
        """Yield the root, and every member that has enough examples, with its strongest causes among the members.

        Members without a cause or a target among the others are in no edge. Steps in `done` are taken over.
        """
        inside = replace(self, among={site: tuple(own) for site, own in members.items()})
        known = {step.target: step for step in done}
        targets: list[Target] = [root]
        for site in sorted(members, reverse=True):
            targets += [FeatureTarget(FeatureId(site, j), self.dictionaries[site]) for j in members[site]]
        for target in targets:
            own = examples if target is root else None
            step = known.get(target.node) or inside._ask(target, own, is_root=target is root)
            if step is not None:
                yield step

    def _ask(self, target: Target, examples: Examples | None, *, is_root: bool) -> Asked | None:
        """The causes of one target; None if it has none below it, or too few examples."""
        allowed = {s: d for s, d in self.dictionaries.items() if self.among is None or self.among.get(s)}
        sites = causes_at(self.model, allowed, target, self.config.reach)
        if not sites:
            return None
        if examples is None:
            examples = self.source.examples(target.node, self.config.n_examples)
            if len(examples) < self.config.least:
                if is_root:
                    raise UserError(
                        f"{target.node} is active in only {len(examples)} distinct contexts of this text; "
                        f"{self.config.least} are needed: give more text or another feature"
                    )
                return None
        found = []
        for site in sites:
            ablation = self.ablations.get(site, to_zero)
            causes = Causes.of(self.model, self.dictionaries[site], site, target, examples, ablation=ablation)
            found.append(find_edges(causes, self.config.edges, None if self.among is None else self.among[site]))
        edges = sorted(
            (self._compared(edge) for one in found for edge in one.edges), key=lambda edge: -abs(edge.effect)
        )
        audits = tuple(one.audit for one in found if one.audit)
        return Asked(target.node, tuple(edges), len(examples), sum(one.n_pairs for one in found), audits)

    def _compared(self, edge: Edge) -> Edge:
        """The edge with the cosine of its two directions, where both have one."""
        ends = [node for node in (edge.cause, edge.target) if isinstance(node, FeatureId)]
        directions = [self.dictionaries[node.site].directions[node.index] for node in ends]
        if len(directions) < 2 or directions[0].shape != directions[1].shape:
            return edge
        return replace(edge, cosine=float(directions[0] @ directions[1]))


def causes_at(
    model: LanguageModel, dictionaries: Mapping[Site, Dictionary], target: Target, reach: Reach = Reach.ADJACENT
) -> list[Site]:
    """The sites with dictionaries where causes of a target are sought, the nearest first; none at the bottom."""
    logits = not isinstance(target.node, FeatureId)
    before = [s for s in dictionaries if (logits and s == target.site) or model.feeds(s, target.site)]
    if reach is Reach.ADJACENT:
        residual = [s for s in before if s.stream is Stream.RESID_POST]
        return [max(residual)] if residual else []
    return sorted(before, reverse=True)


def assemble(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    atlas: FeatureAtlas,
    target: NodeId,
    asked: list[Asked],
    facts: Mapping[str, Any],
    others: Iterable[FeatureId] = (),
) -> FeatureGraph:
    """The graph of what was found, its nodes labelled from the atlas; `facts` say how it was found.

    `others` are nodes whether or not an edge has them.
    """
    edges = tuple(edge for step in asked for edge in step.edges)
    n_examples = {step.target: step.n_examples for step in asked}
    last = Site(model.n_layers - 1)

    def node(id: NodeId) -> Node:
        if not isinstance(id, FeatureId):
            return Node(id, n_examples=n_examples.get(id, 0))
        direction = dictionaries[id.site].directions[id.index]
        return Node(
            id,
            tuple(atlas.responds_to(id, model)),
            float(atlas.sites[id.site].density[id.index]),
            tuple(atlas.promotes(id, direction, model)) if id.site == last else (),
            n_examples.get(id, 0),
        )

    ids = nodes_of(edges, target)
    ids = [*ids, *(id for id in others if id not in ids)]
    measured = {
        "effect": "(sum a_clean - sum a_ablated) / |sum a_clean|",
        "exhaustive": all(edge.certified for edge in edges),
        "targets_asked": len(asked),
        "pairs_run": sum(step.n_pairs for step in asked),
        "audits": [{"target": str(step.target), **audit} for step in asked for audit in step.audits],
    }
    return FeatureGraph(target, tuple(node(id) for id in ids), edges, {**facts, **measured})


def check_target(model: LanguageModel, dictionaries: Mapping[Site, Dictionary], target: FeatureId) -> FeatureTarget:
    """The feature as a target; raises `UserError` unless there is such a latent, with a dictionary below it."""
    if target.site not in dictionaries:
        raise UserError(f"no dictionary for {target.site}; this set has {', '.join(map(str, sorted(dictionaries)))}")
    n_latents = len(dictionaries[target.site].directions)
    if not target.index < n_latents:
        raise UserError(f"{target} is out of range: {target.site} has {n_latents} latents, numbered from 0")
    found = FeatureTarget(target, dictionaries[target.site])
    if not causes_at(model, dictionaries, found, Reach.ALL):
        raise UserError(f"{target} has no site with a dictionary below it that could explain it")
    return found
