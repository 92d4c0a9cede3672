"""A circuit and all that is known of how good it is, from examples that discovery has not seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.discovery.pruning import sufficient_at
from circuits.discovery.recursive import Discovery
from circuits.discovery.sampling import Redrawn
from circuits.effects.targets import Target
from circuits.features.atlas import Examples, ExampleSource, FeatureAtlas
from circuits.graph import ErrorTerm, FeatureGraph, NodeId
from circuits.scoring.ablations import MeanAblation, ResampleAblation
from circuits.scoring.circuit_runs import Errors, Trial, covered_sites, members_of
from circuits.scoring.controls import Controls, Stability, attribution, compare, stability, strongest
from circuits.scoring.edge_check import Moves, intervene
from circuits.scoring.faithfulness import NodeCurve, Scale, Score, Share, by_site, node_curve, score
from sae_core.errors import UserError
from sae_core.progress import OnProgress, Stages, silent
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site


@dataclass(frozen=True)
class Reached:
    """How far a circuit carries its target when more and more layers are left to it alone."""

    sites: tuple[str, ...]
    """Where everything outside the circuit is ablated; below the first of them the model is untouched."""
    n_members: int
    faithfulness: Share
    """With error terms ablated."""
    ceiling: Share
    """All latents kept, error terms ablated."""

    def line(self) -> str:
        """The same in words."""
        share = self.faithfulness.value / self.ceiling.value if self.ceiling.value else float("nan")
        return (
            f"{self.n_members} nodes at {', '.join(self.sites)}: faithfulness {self.faithfulness} of a ceiling of "
            f"{self.ceiling.value:.3f} ({share:.2f})"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        shares = {"faithfulness": self.faithfulness.to_json(), "ceiling": self.ceiling.to_json()}
        return {"sites": list(self.sites), "n_members": self.n_members} | shares


@dataclass(frozen=True)
class CircuitEvaluation:
    """Scores under two ablations, controls, curves, and the checks of edges."""

    reached: tuple[Reached, ...]
    """From the nearest site alone to all that the circuit has members at."""
    scores: tuple[Score, ...]
    controls: tuple[Controls, ...]
    curves: tuple[NodeCurve, ...]
    stability: Stability | None
    moves: Moves | None

    def lines(self) -> list[str]:
        """What `subrank circuit` prints."""
        found = [one.line() for one in self.reached]
        found += [line for one in (*self.scores, *self.controls, *self.curves) for line in one.lines()]
        for one in (self.stability, self.moves):
            found += one.lines() if one else []
        return found

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        lists = {
            name: [one.to_json() for one in getattr(self, name)] for name in ("reached", "scores", "controls", "curves")
        }
        single = {name: one.to_json() if (one := getattr(self, name)) else None for name in ("stability", "moves")}
        return lists | single


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a circuit is judged on."""

    prompts: Examples
    """Of the circuit's target."""
    corrupted: Int[Tensor, "examples pos"] | None
    """Their counterparts, if they have any; other prompts of theirs are resampled from otherwise."""
    source: ExampleSource
    """Of the other nodes."""
    contexts: Int[Tensor, "contexts pos"]
    """A text for means."""
    atlas: FeatureAtlas
    """With the densities that random circuits are matched to."""


def evaluate_circuit(
    search: Discovery,
    target: Target,
    graph: FeatureGraph,
    held: HeldOut,
    *,
    cover: int = 2,
    chosen: Sequence[FeatureId] = (),
    n_nodes: int = 0,
    seeds: Sequence[int] = (),
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> CircuitEvaluation:
    """How good a circuit is on held-out examples; `on_progress` hears of one stage per kind of check.

    Scored are the members at the `cover` sites nearest to the target, everything else at those sites being
    ablated: with every layer covered, a circuit must also carry what lower layers know of names and words, which
    takes far more nodes than anybody can read. `chosen` are the features that suffice, those needed most first, where
    the circuit was found so and not by recursion, `n_nodes` at most. `seeds` are draws of examples with which the
    discovery is repeated; with fewer than two it is not. Raises `UserError` where nothing can be scored.
    """
    sites = covered_sites(search.dictionaries, target)
    nodes = [node.id for node in graph.nodes if node.id != target.node]
    members = {site: own for site, own in members_of(nodes, sites).items() if own}
    if not members:
        raise UserError(f"the circuit of {target.node} has no members at residual sites; there is nothing to score")
    lowest = min(*members, *sites[-cover:]) if chosen else min(members)
    below = sorted((site for site in sites if not site < lowest), reverse=True)
    has_causes = any(isinstance(edge.cause, FeatureId) for edge in graph.edges)
    stages = Stages(on_progress, 1 + has_causes + (len(seeds) > 1))
    stages.begin(f"scoring the circuit on {len(held.prompts)} other examples")
    reached = [_reached(search, target, held, below[: n + 1], members, seed) for n in range(len(below))]
    covered = {site: search.dictionaries[site] for site in below[:cover]}
    members = {site: own for site, own in members.items() if site in covered}
    density = {site: held.atlas.sites[site].density for site in covered}
    scores, controls, curves = [], [], []
    mean = MeanAblation.over_text(search.model, covered, held.contexts)
    for ablation in (mean, _resampled(search, held, covered, seed)):
        trial = Trial(search.model, covered, target, held.prompts, ablation)
        scale = Scale(trial, seed=seed)
        scores.append(score(scale, members))
        controls.append(compare(scale, members, density, generator=generator_for(seed, "controls", ablation.name)))
        if ablation is mean:
            order, by = _by_strength(graph, set(covered)), "strongest edge first"
            if chosen:
                order, by = [f for f in chosen if f.site in covered], "those that it needs most first"
            curves.append(node_curve(scale, order, f"the circuit's nodes, {by}"))
            best = strongest(attribution(trial), max(60, len(order)))
            curves.append(node_curve(scale, best, "any features, largest attribution first"))
    moves = None
    if has_causes:
        stages.begin("scaling causes and reading their targets")
        moves = _moves(search, target, graph, held, seed)
    again = None
    if len(seeds) > 1:
        stages.begin(f"discovering again on {len(seeds)} draws of examples")
        again = stability(lambda draw: _rediscovered(search, target, held, draw, n_nodes, cover), seeds)
    return CircuitEvaluation(tuple(reached), tuple(scores), tuple(controls), tuple(curves), again, moves)


def _reached(
    search: Discovery, target: Target, held: HeldOut, sites: Sequence[Site], members: Mapping[Site, Any], seed: int
) -> Reached:
    """Faithfulness, errors ablated to the mean, where `sites` are covered."""
    covered = {site: search.dictionaries[site] for site in sorted(sites)}
    mean = MeanAblation.over_text(search.model, covered, held.contexts)
    scale = Scale(Trial(search.model, covered, target, held.prompts, mean), seed=seed)
    own = {site: members[site] for site in covered if site in members}
    found, every = scale.trial.values([own, scale.trial.everything()], Errors.ABLATED)
    n_members = sum(map(len, own.values()))
    return Reached(tuple(map(str, covered)), n_members, scale.share(found), scale.share(every))


def _resampled(search: Discovery, held: HeldOut, covered: Mapping[Site, Any], seed: int) -> ResampleAblation:
    if held.corrupted is not None:
        return ResampleAblation.paired(search.model, covered, held.prompts, held.corrupted)
    generator = generator_for(seed, "resample")
    return ResampleAblation.shuffled(search.model, covered, held.prompts, generator=generator)


def _by_strength(graph: FeatureGraph, covered: set[Site]) -> list[FeatureId]:
    """The circuit's features, those of the strongest edges first."""
    best: dict[NodeId, float] = {}
    for edge in graph.edges:
        best[edge.cause] = max(best.get(edge.cause, 0.0), abs(edge.effect))
    features = [n for n in best if isinstance(n, FeatureId) and n.site in covered and n != graph.target]
    return sorted(features, key=lambda node: -best[node])


def _moves(search: Discovery, target: Target, graph: FeatureGraph, held: HeldOut, seed: int) -> Moves:
    asked = {edge.target for edge in graph.edges if isinstance(edge.target, FeatureId)}
    found = {node: held.source.examples(node, search.config.n_examples) for node in asked if node != target.node}
    examples = {node: own for node, own in found.items() if len(own)} | {target.node: held.prompts}
    edges = [edge for edge in graph.edges if not isinstance(edge.cause, ErrorTerm)]
    readouts = () if isinstance(target.node, FeatureId) else (target,)
    generator = generator_for(seed, "moves")
    return intervene(search.model, search.dictionaries, edges, examples, readouts=readouts, generator=generator)


def _rediscovered(search: Discovery, target: Target, held: HeldOut, draw: int, n: int, cover: int) -> list:
    """The edges that the same search finds with other examples: by recursion, or among `n` features that suffice."""
    bare = replace(search.config, edges=replace(search.config.edges, n_null=0, errors=False), least=1)
    again = replace(search, source=Redrawn(search.source, draw), config=bare)
    own, corrupted = None, None
    if not isinstance(target.node, FeatureId):
        rows = torch.randperm(len(held.prompts), generator=generator_for(draw, "prompts"))[
            : max(2, len(held.prompts) // 2)
        ]
        own = Examples(held.prompts.tokens[rows], held.prompts.end[rows], held.prompts.activation[rows])
        target = target.some(rows)
        corrupted = None if held.corrupted is None else held.corrupted[rows]
    if n:
        given = again.source.examples(target.node, search.config.n_examples) if own is None else own
        found = sufficient_at(again, target, given, held.contexts, n, cover=cover, corrupted=corrupted)
        return [edge for step in again.within(by_site(found), target, own) for edge in step.edges]
    return [edge for step in again.run(target, own) for edge in step.edges]
