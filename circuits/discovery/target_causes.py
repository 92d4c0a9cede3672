"""The causes of one target: the step that every search for a circuit repeats.

For a target and its examples, the latents active at earlier sites are ablated one at a time, and those with the
largest effect on the target are kept (`circuits/discovery/edges.py`). `recursive.py` repeats this for the causes
found, `member_edges.py` for the members of a given circuit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from circuits.discovery.edges import EdgeConfig, find_edges
from circuits.effects.ablation_effects import AblatedCodes, Causes, to_zero
from circuits.effects.targets import FeatureTarget, Target
from circuits.features.atlas import Examples, ExampleSource
from circuits.graph import DirectSum, Edge, NodeId
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site, Stream

MIN_EXAMPLES = 16


class Reach(StrEnum):
    """The sites at which causes are searched."""

    ADJACENT = "adjacent"
    """The nearest earlier residual site that has a dictionary."""
    ALL = "all"
    """Every earlier site that has one."""


@dataclass(frozen=True)
class DiscoveryConfig:
    """How far a search goes, and on how many examples."""

    edges: EdgeConfig = field(default_factory=EdgeConfig)
    n_examples: int = MIN_EXAMPLES
    """Examples per target, each from another context."""
    min_examples: int = MIN_EXAMPLES
    """A feature with fewer examples is not searched for causes."""
    max_targets: int = 15
    """Targets searched, at most."""
    depth: int | None = None
    """Edges from the root to the last causes, at most; None for no limit."""
    reach: Reach = Reach.ADJACENT
    follow_sinks: bool = False
    """Whether causes are sought of features that belong to attention sinks (`SiteStatistics.sinks`), too."""


@dataclass(frozen=True)
class TargetCauses:
    """One step of a search: a target, and the edges from its strongest causes."""

    target: NodeId
    edges: tuple[Edge, ...]
    """The largest |effect| first."""
    n_examples: int
    n_pairs: int
    """Pairs of latent and example that were ablated."""
    audits: tuple[dict[str, Any], ...] = ()
    """Per site at which not all active latents were ablated: what a random sample of the others shows."""
    direct: DirectSum | None = None
    """What the direct effects of the members of a circuit add up to; None where they were not measured."""


@dataclass(frozen=True, eq=False)
class CauseSearch:
    """What is the same for every target of a search: model, dictionaries, examples, settings."""

    model: LanguageModel
    dictionaries: Mapping[Site, Dictionary]
    source: ExampleSource
    """Gives the examples of features."""
    config: DiscoveryConfig = field(default_factory=DiscoveryConfig)
    ablations: Mapping[Site, AblatedCodes] = field(default_factory=dict)
    """What the latents of a site are set to, where it is not zero."""
    sinks: frozenset[FeatureId] = frozenset()
    """Features that are not searched for causes unless they are the root."""

    def feature(self, node: FeatureId) -> FeatureTarget:
        """The feature as a target."""
        return FeatureTarget(node, self.dictionaries[node.site])

    def causes_of(
        self, target: Target, examples: Examples | None = None, *, among: Mapping[Site, Sequence[int]] | None = None
    ) -> TargetCauses | None:
        """The causes of one target, by default on examples from `source`; `among` limits them to some latents.

        None where no site below the target has a dictionary (or a latent of `among`), and where `source` has fewer
        than `min_examples`.
        """
        sites = cause_sites(
            self.model,
            [site for site in self.dictionaries if among is None or among.get(site)],
            target,
            self.config.reach,
        )
        if not sites:
            return None
        if examples is None:
            assert isinstance(target.node, FeatureId)
            examples = self.source.examples(target.node, self.config.n_examples)
            if len(examples) < self.config.min_examples:
                return None
        by_site = []
        for site in sites:
            ablation = self.ablations.get(site, to_zero)
            causes = Causes.of(self.model, self.dictionaries[site], site, target, examples, ablation=ablation)
            by_site.append(find_edges(causes, self.config.edges, None if among is None else among[site]))
        edges = sorted(
            (self.with_cosine(edge) for causes in by_site for edge in causes.edges), key=lambda edge: -abs(edge.effect)
        )
        audits = tuple(causes.audit for causes in by_site if causes.audit)
        return TargetCauses(target.node, tuple(edges), len(examples), sum(causes.n_pairs for causes in by_site), audits)

    def causes_of_root(
        self, root: Target, examples: Examples | None = None, *, among: Mapping[Site, Sequence[int]] | None = None
    ) -> TargetCauses | None:
        """As `causes_of`, but too few examples are a `UserError`: without its root there is no circuit."""
        step = self.causes_of(root, examples, among=among)
        if step is None and examples is None and isinstance(root.node, FeatureId):
            n = len(self.source.examples(root.node, self.config.n_examples))
            if n < self.config.min_examples:
                raise UserError(
                    f"{root.node} is active in only {n} distinct contexts of this text; "
                    f"{self.config.min_examples} are needed: give more text or another feature"
                )
        return step

    def with_cosine(self, edge: Edge) -> Edge:
        """The edge with the cosine of its two directions, where both ends have one of the same width."""
        ends = [node for node in (edge.cause, edge.target) if isinstance(node, FeatureId)]
        directions = [self.dictionaries[node.site].directions[node.index] for node in ends]
        if len(directions) < 2 or directions[0].shape != directions[1].shape:
            return edge
        return replace(edge, cosine=float(directions[0] @ directions[1]))


def cause_sites(
    model: LanguageModel, sites: Iterable[Site], target: Target, reach: Reach = Reach.ADJACENT
) -> list[Site]:
    """Those of `sites` where causes of a target are searched, the nearest first; none at the bottom."""
    is_readout = not isinstance(target.node, FeatureId)
    before = [s for s in sites if (is_readout and s == target.site) or model.feeds(s, target.site)]
    if reach is Reach.ADJACENT:
        residual = [s for s in before if s.stream is Stream.RESID_POST]
        return [max(residual)] if residual else []
    return sorted(before, reverse=True)


def check_target(model: LanguageModel, dictionaries: Mapping[Site, Dictionary], target: FeatureId) -> FeatureTarget:
    """The feature as a target; raises `UserError` unless there is such a latent, with a dictionary below it."""
    if target.site not in dictionaries:
        raise UserError(f"no dictionary for {target.site}; this set has {', '.join(map(str, sorted(dictionaries)))}")
    n_latents = len(dictionaries[target.site].directions)
    if not target.index < n_latents:
        raise UserError(f"{target} is out of range: {target.site} has {n_latents} latents, numbered from 0")
    feature = FeatureTarget(target, dictionaries[target.site])
    if not cause_sites(model, dictionaries, feature, Reach.ALL):
        raise UserError(f"{target} has no site with a dictionary below it that could explain it")
    return feature
