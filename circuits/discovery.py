"""From a feature to the circuit that drives it (Cunningham et al. 2023, section on automatic circuits).

Find activating examples of the target, ablate every active feature of the previous layer on them, keep
the few with the largest effect, and ask the same of each, down to layer 0. Every target gets examples of
its own, the cause with the strongest edge is asked first, and no feature is asked twice.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from circuits.effects import ablation_effects
from circuits.features import FeatureAtlas
from circuits.graph import Edge, FeatureGraph, Node, features_of
from sae_core.dictionaries import Dictionary
from sae_core.errors import UserError
from sae_core.models import LanguageModel
from sae_core.sites import FeatureId, Site, Stream

MIN_EXAMPLES = 16


@dataclass(frozen=True)
class DiscoveryConfig:
    """How far to go."""

    keep: int = 3
    """Causes kept per target."""
    n_examples: int = MIN_EXAMPLES
    """Examples per target, each from another context; fewer than 16 are refused."""
    max_targets: int = 15
    min_effect: float = 0.01
    """Edges weaker than this are not kept."""


@dataclass(frozen=True)
class Asked:
    """One target whose causes were sought."""

    target: FeatureId
    edges: tuple[Edge, ...]
    n_examples: int
    n_pairs: int


def discover(
    model: LanguageModel,
    dictionaries: dict[Site, Dictionary],
    atlas: FeatureAtlas,
    target: FeatureId,
    config: DiscoveryConfig,
) -> Iterator[Asked]:
    """Yield each target with its kept edges; of the causes waiting, the one with the strongest edge is next.

    A cause with fewer than 16 examples is not asked; for the root that is a `UserError`.
    """
    queue = [(-1.0, target)]
    asked: set[FeatureId] = set()
    while queue and len(asked) < config.max_targets:
        _, feature = heapq.heappop(queue)
        source = previous_site(dictionaries, feature.site)
        if feature in asked or source is None:
            continue
        examples = atlas.examples(feature, config.n_examples)
        if len(examples) < MIN_EXAMPLES:
            if feature == target:
                raise UserError(
                    f"{target} is active in only {len(examples)} distinct contexts of this text; "
                    f"{MIN_EXAMPLES} are needed: give more text or another feature"
                )
            continue
        asked.add(feature)
        found = ablation_effects(model, dictionaries, source, feature, examples)
        edges = []
        for j in found.effect.abs().argsort(descending=True, stable=True)[: config.keep].tolist():
            effect, cause = float(found.effect[j]), FeatureId(source, j)
            if abs(effect) < config.min_effect:
                break
            cosine = dictionaries[source].directions[j] @ dictionaries[feature.site].directions[feature.index]
            edges.append(Edge(cause, feature, effect, int(found.n_active[j]), len(examples), float(cosine)))
            heapq.heappush(queue, (-abs(effect), cause))
        yield Asked(feature, tuple(edges), len(examples), found.n_pairs)


def previous_site(dictionaries: dict[Site, Dictionary], site: Site) -> Site | None:
    """The nearest residual site below `site` that has a dictionary; None at the bottom."""
    below = [s for s in dictionaries if s.stream is Stream.RESID_POST and s.layer < site.layer]
    return max(below, key=lambda s: s.layer, default=None)


def assemble(
    model: LanguageModel,
    dictionaries: dict[Site, Dictionary],
    atlas: FeatureAtlas,
    target: FeatureId,
    asked: list[Asked],
) -> FeatureGraph:
    """The graph of what `discover` found, its nodes labelled from the atlas."""
    edges = tuple(edge for step in asked for edge in step.edges)
    n_examples = {step.target: step.n_examples for step in asked}
    last = model.n_layers - 1

    def node(feature: FeatureId) -> Node:
        direction = dictionaries[feature.site].directions[feature.index]
        final = feature.site == Site(last)
        return Node(
            feature,
            tuple(atlas.responds_to(feature, model)),
            float(atlas.sites[feature.site].density[feature.index]),
            tuple(atlas.promotes(feature, direction, model)) if final else (),
            n_examples.get(feature, 0),
        )

    nodes = tuple(node(feature) for feature in features_of(edges, target))
    facts = {
        "ablation": "zero, at all positions up to the target's, error term kept",
        "effect": "(sum a_clean - sum a_ablated) / sum a_clean",
        "examples": "each feature's strongest contexts, one position each",
        "exhaustive": True,
        "targets_asked": len(asked),
        "pairs_run": sum(step.n_pairs for step in asked),
    }
    return FeatureGraph(target, nodes, edges, facts)


def check_target(dictionaries: dict[Site, Dictionary], target: FeatureId) -> None:
    """Raise `UserError` unless there is a dictionary with that latent, and one below it to explain it."""
    if target.site not in dictionaries:
        raise UserError(f"no dictionary for {target.site}; this set has {', '.join(map(str, sorted(dictionaries)))}")
    n_latents = len(dictionaries[target.site].directions)
    if not target.index < n_latents:
        raise UserError(f"{target} is out of range: {target.site} has {n_latents} latents, numbered from 0")
    if previous_site(dictionaries, target.site) is None:
        raise UserError(f"{target} has no resid_post site with a dictionary below it that could explain it")
