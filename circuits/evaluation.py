"""How good a circuit is, on examples that its discovery has not seen.

Scored are the members at the sites nearest to the target (`CircuitRequest.cover`), everything else at those sites
being ablated. With every layer covered a circuit must also carry what lower layers know of names and words, which
takes far more nodes than a person can read: `reached` shows how faithfulness falls as more layers are covered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from circuits.discovery.circuit import Circuit, circuit_steps, sufficient_features
from circuits.discovery.request import ResolvedRequest, logit_prompts
from circuits.discovery.sampling import RedrawnExamples
from circuits.effects.member_effects import MemberEffects
from circuits.effects.target_prompts import TargetPrompts
from circuits.effects.targets import LogitTarget
from circuits.features.atlas import Examples, FeatureAtlas
from circuits.graph import Edge, ErrorTerm, FeatureGraph, NodeId
from circuits.scoring.ablations import MeanAblation, ResampleAblation
from circuits.scoring.attribution import attribution, strongest
from circuits.scoring.circuit_runs import CircuitRuns, Errors, by_site, covered_sites, members_of, nearest_layers
from circuits.scoring.controls import Controls, Stability, compare_with_controls, stability
from circuits.scoring.edge_check import EdgeCheck, check_edges, check_member_edges
from circuits.scoring.faithfulness import CircuitScore, Scale, score_circuit
from circuits.scoring.node_curve import NodeCurve, node_curve
from sae_core.codec import from_plain, to_plain
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.estimate import Estimate
from sae_core.progress import OnProgress, Stages, silent
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site

DOUBLING = (0, *(2**k for k in range(4, 12)), 10**6)
"""Numbers of nodes at which a circuit of many is scored; the last is all of them."""
MIN_CURVE = 60
"""Features of the attribution-ranked curve, at least."""


@dataclass(frozen=True)
class Reached:
    """Faithfulness where a number of sites are covered."""

    sites: tuple[str, ...]
    """Where everything outside the circuit is ablated; below the first of them the model is untouched."""
    n_members: int
    faithfulness: Estimate
    """With error terms ablated."""
    ceiling: Estimate
    """All latents kept, error terms ablated."""

    def line(self) -> str:
        """The same in words."""
        share = self.faithfulness.value / self.ceiling.value if self.ceiling.value else float("nan")
        return (
            f"{self.n_members} nodes at {', '.join(self.sites)}: faithfulness {self.faithfulness} of a ceiling of "
            f"{self.ceiling.value:.3f} ({share:.2f})"
        )


@dataclass(frozen=True)
class CircuitEvaluation:
    """Scores under two ablations, controls, curves, and the checks of edges."""

    reached: tuple[Reached, ...]
    """From the nearest site alone to all that the circuit has members at."""
    scores: tuple[CircuitScore, ...]
    controls: tuple[Controls, ...]
    curves: tuple[NodeCurve, ...]
    stability: Stability | None
    moves: EdgeCheck | None

    def lines(self) -> list[str]:
        """What `subrank circuit` prints."""
        lines = [reached.line() for reached in self.reached]
        lines += [line for part in (*self.scores, *self.controls, *self.curves) for line in part.lines()]
        for part in (self.stability, self.moves):
            lines += part.lines() if part else []
        return lines

    def to_json(self) -> dict[str, Any]:
        """All numbers, with summaries that `from_json` does not read: minimality, better, mean overlap, agreement."""
        plain = to_plain(self)
        for score, numbers in zip(self.scores, plain["scores"], strict=True):
            for errors, way in score.ways.items():
                least = None if way.least_missed is None else str(way.least_missed)
                numbers["ways"][errors] |= to_plain({"minimality_mean": way.mean_drop, "minimality_worst": least})
        for compared, numbers in zip(self.controls, plain["controls"], strict=True):
            numbers["better_than_random"] = compared.better
        if self.stability:
            plain["stability"]["mean"] = to_plain(self.stability.mean)
        if self.moves:
            plain["moves"]["agreement"] = to_plain(self.moves.agreement())
        return plain

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "CircuitEvaluation":
        """The evaluation that `to_json` wrote; raises `UserError` where it cannot be one."""
        return from_plain(cls, value)


def evaluate_circuit(
    resolved: ResolvedRequest,
    circuit: Circuit,
    atlas: FeatureAtlas,
    *,
    n_draws: int = 0,
    n_random: int = 20,
    on_progress: OnProgress = silent,
) -> CircuitEvaluation:
    """All measurements of a circuit on held-out examples.

    `atlas` is the survey of contexts that were not searched: its text gives means, examples and densities. With
    `n_draws` of 2 or more the discovery is repeated on so many draws of examples; `n_random` circuits of random
    latents are its controls. Raises `UserError` where nothing can be scored.
    """
    held = _HeldOut(resolved, held_out_prompts(resolved, atlas), atlas, n_random)
    members = held.members(circuit)
    has_causes = any(isinstance(edge.cause, FeatureId) for edge in circuit.graph.edges)
    n_draws = n_draws if n_draws > 1 else 0
    stages = Stages(on_progress, 1 + has_causes + n_draws)
    stages.begin(f"scoring the circuit on {len(held.prompts.examples)} other examples")
    below = held.sites_down_to(circuit, members)
    layers = sorted({site.layer for site in below}, reverse=True)
    reached = tuple(held.reached([site for site in below if site.layer >= layer], members) for layer in layers)
    nearest = [site for site in below if site.layer in layers[: resolved.request.cover]]
    scores, controls, curves = held.scored(nearest, members, circuit)
    moves = again = None
    if has_causes:
        stages.begin("scaling causes and reading their targets")
        moves = held.moves(circuit.graph)
    if n_draws:

        def rediscovered(draw: int) -> list[Edge]:
            stages.begin(f"discovering again, on draw {draw + 1} of {n_draws} of the examples")
            return held.rediscovered(draw)

        again = stability(rediscovered, range(n_draws))
    return CircuitEvaluation(reached, scores, controls, curves, again, moves)


def held_out_prompts(resolved: ResolvedRequest, atlas: FeatureAtlas) -> TargetPrompts:
    """The target on examples that discovery has not seen: a task's test split, or places of the text of `atlas`."""
    search, target = resolved.search, resolved.target
    n = search.config.n_examples
    if isinstance(target.node, FeatureId):
        return TargetPrompts(target, atlas.examples(target.node, n if resolved.on_prompts else 2 * n))
    request = replace(resolved.request, prompts=())
    return logit_prompts(search.model, request, atlas.contexts, "test", 4 * n, resolved.prepend_bos)


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """The parts of an evaluation, on one set of held-out prompts."""

    resolved: ResolvedRequest
    prompts: TargetPrompts
    atlas: FeatureAtlas
    n_random: int

    @cached_property
    def means(self) -> MeanAblation:
        """Mean codes and errors over the text."""
        sites = covered_sites(self.saes, self.prompts.target)
        return MeanAblation.surveyed(self.atlas.survey, self.atlas.contexts, sites)

    @property
    def saes(self) -> dict[Site, Dictionary]:
        """The dictionaries of the sites that a circuit is scored at."""
        return self.resolved.covered

    def members(self, circuit: Circuit) -> dict[Site, tuple[int, ...]]:
        """The circuit's members by site; raises `UserError` where there are none."""
        nodes = [node.id for node in circuit.graph.nodes if node.id != self.prompts.target.node]
        sites = covered_sites(self.saes, self.prompts.target)
        members = {site: latents for site, latents in members_of(nodes, sites).items() if latents}
        if not members:
            streams = " or ".join(dict.fromkeys(site.stream for site in sites))
            node = self.prompts.target.node
            raise UserError(f"the circuit of {node} has no members at {streams} sites; there is nothing to score")
        return members

    def sites_down_to(self, circuit: Circuit, members: Mapping[Site, Any]) -> list[Site]:
        """The sites that may be covered, the nearest first: to the lowest member, a pruned circuit's `cover` sites."""
        sites = covered_sites(self.saes, self.prompts.target)
        nearest = nearest_layers(sites, self.resolved.request.cover)
        lowest = min(*members, *nearest) if circuit.sufficient else min(members)
        return sorted((site for site in sites if not site < lowest), reverse=True)

    def covered(self, sites: Sequence[Site]) -> dict[Site, Dictionary]:
        """The dictionaries of some sites."""
        return {site: self.saes[site] for site in sites}

    def runs(self, covered: Mapping[Site, Dictionary], ablation: MeanAblation | ResampleAblation) -> CircuitRuns:
        """The held-out prompts, to be run with a circuit alone."""
        return CircuitRuns(self.resolved.search.model, covered, self.prompts.target, self.prompts.examples, ablation)

    def reached(self, sites: Sequence[Site], members: Mapping[Site, Sequence[int]]) -> Reached:
        """Faithfulness, errors ablated to the mean, where `sites` are covered."""
        covered = self.covered(sorted(sites))
        scale = Scale(self.runs(covered, self.means), seed=self.resolved.request.seed)
        inside = {site: members[site] for site in covered if site in members}
        alone, every = scale.runs.values([inside, scale.runs.everything()], Errors.ABLATED)
        return Reached(tuple(map(str, covered)), sum(map(len, inside.values())), scale.share(alone), scale.share(every))

    def scored(
        self, sites: Sequence[Site], members: Mapping[Site, Sequence[int]], circuit: Circuit
    ) -> tuple[tuple[CircuitScore, ...], tuple[Controls, ...], tuple[NodeCurve, ...]]:
        """Scores and controls under mean and under resample ablation, and node curves under the former."""
        covered, seed = self.covered(sites), self.resolved.request.seed
        members = {site: latents for site, latents in members.items() if site in covered}
        density = {site: self.atlas.sites[site].density for site in covered}
        scores, controls, curves = [], [], []
        for ablation in (self.means, self.resampled(covered)):
            scale = Scale(self.runs(covered, ablation), seed=seed)
            # that of hundreds of pairs of member and prompt under each ablation takes as long as all else
            minimal = tuple(Errors) if not self.resolved.on_prompts else () if scores else (Errors.ABLATED,)
            scores.append(score_circuit(scale, members, minimal=minimal))
            generator = generator_for(seed, "controls", ablation.name)
            controls.append(compare_with_controls(scale, members, density, generator=generator, n=self.n_random))
            if ablation is self.means:
                order, by = _by_strength(circuit.graph, set(covered)), "strongest edge first"
                if circuit.sufficient:
                    order, by = [f for f in circuit.sufficient if f.site in covered], "those that it needs most first"
                counts = DOUBLING if self.resolved.on_prompts else None
                curves.append(node_curve(scale, order, f"the circuit's nodes, {by}", counts=counts))
                best = strongest(attribution(scale.runs), max(MIN_CURVE, len(order)))
                curves.append(node_curve(scale, best, "any features, largest attribution first", counts=counts))
        return tuple(scores), tuple(controls), tuple(curves)

    def resampled(self, covered: Mapping[Site, Dictionary]) -> ResampleAblation:
        """From the prompts' corrupted counterparts where there are some, else from one another."""
        model, prompts = self.resolved.search.model, self.prompts
        if prompts.corrupted is not None:
            return ResampleAblation.paired(model, covered, prompts.examples, prompts.corrupted)
        generator = generator_for(self.resolved.request.seed, "resample")
        return ResampleAblation.shuffled(model, covered, prompts.examples, generator=generator)

    def moves(self, graph: FeatureGraph) -> EdgeCheck:
        """Causes scaled and their targets read, on held-out examples of every target."""
        search, target = self.resolved.search, self.prompts.target
        generator = generator_for(self.resolved.request.seed, "moves")
        edges = [edge for edge in graph.edges if not isinstance(edge.cause, ErrorTerm)]
        if self.resolved.on_prompts:
            members = by_site(feature for feature in graph.features() if feature != target.node)
            prompts = _first(self.prompts.examples, search.config.n_examples)
            effects = MemberEffects(search.model, search.dictionaries, prompts, target, members, {})
            return check_member_edges(effects, edges, generator=generator)
        targets = {edge.target for edge in graph.edges if isinstance(edge.target, FeatureId)} - {target.node}
        prompts = {
            node: TargetPrompts(search.feature(node), self.atlas.examples(node, search.config.n_examples))
            for node in targets
        }
        prompts = {node: read for node, read in prompts.items() if len(read.examples)} | {target.node: self.prompts}
        return check_edges(search.model, search.dictionaries, edges, prompts, generator=generator)

    def rediscovered(self, draw: int) -> list[Edge]:
        """The edges that the same search finds with half of the examples, drawn at random.

        Of features with fewer examples than it needs the causes are not searched, as they are not in the circuit.
        """
        search = self.resolved.search
        bare = replace(search.config.edges, n_null=0, errors=False, described=False)
        config = replace(search.config, edges=bare, min_examples=-(-search.config.min_examples // 2))
        search = replace(search, source=RedrawnExamples(search.source, draw), config=config)
        resolved, prompts = replace(self.resolved, search=search, atlas=self.atlas), self.prompts
        if self.resolved.on_prompts or not isinstance(prompts.target.node, FeatureId):
            half = _half(prompts, draw)
            resolved = replace(resolved, target=half.target, examples=half.examples, corrupted=half.corrupted)
        return [edge for step in circuit_steps(resolved, sufficient_features(resolved)) for edge in step.edges]


def _first(examples: Examples, n: int) -> Examples:
    return Examples(examples.tokens[:n], examples.end[:n], examples.activation[:n])


def _half(prompts: TargetPrompts, draw: int) -> TargetPrompts:
    """Half of the prompts, but two at least, drawn at random."""
    examples, n = prompts.examples, len(prompts.examples)
    rows = torch.randperm(n, generator=generator_for(draw, "prompts"))[: max(2, n // 2)]
    corrupted = None if prompts.corrupted is None else prompts.corrupted[rows]
    half = Examples(examples.tokens[rows], examples.end[rows], examples.activation[rows])
    target = prompts.target.only(rows) if isinstance(prompts.target, LogitTarget) else prompts.target
    return TargetPrompts(target, half, corrupted)


def _by_strength(graph: FeatureGraph, covered: set[Site]) -> list[FeatureId]:
    """The circuit's features, those of the strongest edges first."""
    best: dict[NodeId, float] = {}
    for edge in graph.edges:
        best[edge.cause] = max(best.get(edge.cause, 0.0), abs(edge.effect))
    features = [n for n in best if isinstance(n, FeatureId) and n.site in covered and n != graph.target]
    return sorted(features, key=lambda node: -best[node])
