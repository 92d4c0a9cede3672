"""Edges checked by intervention: one node of a circuit is scaled, and its targets should move as the edges predict.

An edge of effect E (`circuits.graph.Edge`) states that a target loses the share E when its cause is ablated.
If causes act in proportion, scaling the cause by s changes the target by (s - 1) E of itself:

    change = (sum a_scaled - sum a_clean) / |sum a_clean|    over the target's examples, at their ends

measured in the real model, the cause scaled at all content positions and its error term kept. At s = 0, on
the examples of discovery, this is the edge measured again; other factors and other examples can disagree.
Control: nodes of the same two sites between which the circuit has no edge should hardly move.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuits.effects.member_effects import MemberEffects
from circuits.effects.target_prompts import TargetPrompts
from circuits.graph import Edge, NodeId
from editing.interventions.patch import scale
from editing.tasks.pairs import at_end
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import FeatureId, Site, Stream


@dataclass(frozen=True)
class ScaledCause:
    """What happened to one target when one cause was scaled."""

    cause: FeatureId
    target: NodeId
    factor: float
    change: float
    """(sum a_scaled - sum a_clean) / |sum a_clean| over the target's examples."""
    effect: float | None
    """The edge's; None for a control, which has no edge."""

    @property
    def predicted(self) -> float:
        """(factor - 1) times the edge's effect, zero without an edge."""
        return (self.factor - 1) * (self.effect or 0.0)


@dataclass(frozen=True)
class FactorAgreement:
    """Changes beside what the edges predict, for one factor."""

    factor: float
    n_edges: int
    correlation: float
    """Pearson's, of changes with predictions over edges; NaN where either does not vary."""
    same_sign: float
    """Share of edges whose target moves in the direction that the edge predicts."""
    edges_move: float
    """Mean |change| over edges."""
    n_controls: int
    controls_move: float
    """Mean |change| over pairs without an edge; NaN if there are none."""

    def sentence(self) -> str:
        """The agreement in words."""
        beside = f"{self.controls_move:.4f} over {self.n_controls} pairs without an edge"
        return (
            f"causes x {self.factor:g}: changes of {self.n_edges} targets correlate {self.correlation:.3f} with their "
            f"edges, same sign in {self.same_sign:.0%}; mean |change| {self.edges_move:.4f}, "
            + (beside if self.n_controls else "no pairs without an edge to compare with")
        )


@dataclass(frozen=True)
class EdgeCheck:
    """All interventions on one circuit."""

    moves: tuple[ScaledCause, ...]
    """Of edges and, with no effect, of controls."""
    left_out: int
    """Edges that were not tried: their cause is no feature, or their target had no examples."""

    def agreement(self) -> list[FactorAgreement]:
        """One for each factor, in order."""
        return [self._at(factor) for factor in sorted({move.factor for move in self.moves})]

    def _at(self, factor: float) -> FactorAgreement:
        edges = [m for m in self.moves if m.factor == factor and m.effect is not None]
        controls = [m for m in self.moves if m.factor == factor and m.effect is None]
        change, predicted = torch.tensor([[m.change, m.predicted] for m in edges], dtype=torch.float64).T
        return FactorAgreement(
            factor=factor,
            n_edges=len(edges),
            correlation=_correlation(change, predicted),
            same_sign=(change.sign() == predicted.sign()).double().mean().item(),
            edges_move=change.abs().mean().item(),
            n_controls=len(controls),
            controls_move=sum(abs(m.change) for m in controls) / len(controls) if controls else math.nan,
        )

    def lines(self) -> list[str]:
        """One line per factor."""
        return [agreement.sentence() for agreement in self.agreement()]


def _correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's; NaN where either does not vary."""
    x, y = x - x.mean(), y - y.mean()
    size = x.norm() * y.norm()
    return (x @ y / size).item() if size > 0 else math.nan


@dataclass(frozen=True)
class EdgeCheckConfig:
    """By what causes are scaled, and how many pairs without an edge are tried beside them."""

    factors: tuple[float, ...] = (0.0, 0.5, 2.0)
    max_controls: int = 64


@torch.no_grad()
def check_edges(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    edges: Sequence[Edge],
    prompts: Mapping[NodeId, TargetPrompts],
    *,
    generator: torch.Generator,
    config: EdgeCheckConfig = EdgeCheckConfig(),
) -> EdgeCheck:
    """Scale the cause of every edge, one at a time, and read its target on the target's examples.

    `prompts` hold the circuit's targets with their examples, which should be ones that discovery has not seen. Controls
    are pairs of nodes without an edge, at sites between which the circuit has some. Raises `UserError` where no edge
    can be tried, for a factor of 1, and for a target that is zero on its examples.
    """
    factors = config.factors
    pairs, left_out = _pairs(edges, {node: prompts[node].target.site for node in prompts}, generator, config)
    moves = []
    for target in dict.fromkeys(target for _, target, _ in pairs):
        causes = [(cause, effect) for cause, other, effect in pairs if other == target]
        changes = _changes(model, dictionaries, [cause for cause, _ in causes], prompts[target], factors)
        moves += [
            ScaledCause(cause, target, factor, change, effect)
            for (cause, effect), row in zip(causes, changes, strict=True)
            for factor, change in zip(factors, row, strict=True)
        ]
    return EdgeCheck(tuple(moves), left_out)


def check_member_edges(
    effects: MemberEffects,
    edges: Sequence[Edge],
    *,
    generator: torch.Generator,
    config: EdgeCheckConfig = EdgeCheckConfig(),
) -> EdgeCheck:
    """`check_edges` where all targets are read on the same prompts: each cause is scaled once for all of them.

    `effects` are those of the members on prompts that discovery has not seen, ablated to zero.
    """
    causes = {cause.node: number for number, cause in enumerate(effects.causes)}
    readings = {reading.target.node: (number, reading) for number, reading in enumerate(effects.readings)}
    where = {node: reading.target.site for node, (_, reading) in readings.items()}
    pairs, left_out = _pairs(edges, where, generator, config)
    moves = []
    for factor in config.factors:
        lost = effects.total(1 - factor)
        for cause, target, effect in pairs:
            number, reading = readings[target]
            change = -float(reading.effects(lost[causes[cause], number, None])[0])
            moves.append(ScaledCause(cause, target, factor, change, effect))
    return EdgeCheck(tuple(moves), left_out)


def _pairs(
    edges: Sequence[Edge], readable: Mapping[NodeId, Site], generator: torch.Generator, config: EdgeCheckConfig
) -> tuple[list[tuple[FeatureId, NodeId, float | None]], int]:
    """(cause, target, effect) of the edges that can be tried and, with no effect, of controls; how many edges cannot.

    Raises `UserError` where there is no edge to try, or no factor that could move anything.
    """
    if 1 in config.factors or not config.factors:
        raise UserError(
            f"scaling by {', '.join(map(str, config.factors)) or 'nothing'} cannot move anything; give other factors"
        )
    tried = [(e.cause, e.target, e.effect) for e in edges if e.target in readable and isinstance(e.cause, FeatureId)]
    if not tried:
        raise UserError("no edge of this circuit can be checked: none of its targets has examples; give more text")
    free = _without_edge(edges, readable)
    drawn = torch.randperm(len(free), generator=generator)[: config.max_controls].sort().values
    return [*tried, *((*free[k], None) for k in drawn.tolist())], len(edges) - len(tried)


def _without_edge(edges: Sequence[Edge], readable: Mapping[NodeId, Site]) -> list[tuple[FeatureId, NodeId]]:
    """Pairs of a feature and a readable node of the circuit that have no edge, at sites between which there are some.

    `readable` maps the nodes that have examples to the sites at which they are read.
    """
    linked = {(edge.cause, edge.target) for edge in edges}
    nodes = {node for pair in linked for node in pair}
    features = {node: node.site for node in nodes if isinstance(node, FeatureId)}
    where = features | dict(readable)
    sites = {(features[cause], where[target]) for cause, target in linked if cause in features and target in where}
    return [
        (cause, target)
        for target in sorted(nodes & readable.keys(), key=str)
        for cause in sorted(features)
        if (cause.site, where[target]) in sites and (cause, target) not in linked and cause != target
    ]


def _changes(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    causes: Sequence[FeatureId],
    prompts: TargetPrompts,
    factors: Sequence[float],
) -> list[list[float]]:
    """The target's relative change for every cause and factor."""
    target, examples = prompts.target, prompts.examples
    end, tokens = examples.end, examples.tokens[:, : int(examples.end.max()) + 1]
    start = {cause.site: _start(cause.site) for cause in causes}
    # Clean activations [examples, pos, d]: of the target, and of the residuals from which edited runs start.
    recorded = model.record(tokens, {target.site, *(site for site in start.values() if site is not None)})
    everyone = torch.arange(len(end), device=model.device)
    mask = model.content(tokens).to(model.device)

    def total(h: Tensor) -> float:
        return target.read(at_end(h, end), everyone).double().sum().item()

    clean = total(recorded[target.site])
    if not clean:
        raise UserError(f"{target.node} is zero on the examples on which its causes should be checked; give others")
    changes = []
    for cause in causes:
        edits = [scale(cause.site, dictionaries[cause.site], [cause], factor, mask=mask) for factor in factors]
        below = start[cause.site]
        h = None if below is None else recorded[below]
        changes.append([(total(_after(model, tokens, edit, h, target.site)) - clean) / abs(clean) for edit in edits])
    return changes


def _start(site: Site) -> Site | None:
    """The residual from which a run with an edit at `site` can start; None for the tokens."""
    if site.stream is Stream.RESID_POST:
        return site
    return Site(site.layer - 1) if site.layer else None


def _after(model: LanguageModel, tokens: Tensor, edit: Intervention, h: Tensor | None, wanted: Site) -> Tensor:
    """The activation at `wanted` under the edit, from the residual `h` that `_start` names."""
    if edit.site.stream is Stream.RESID_POST:
        assert h is not None
        edited = edit(h)
        return edited if wanted == edit.site else model.resume(edited, edit.site.layer, [wanted])[wanted]
    with model.hooks(edit):
        if h is None:
            return model.record(tokens, [wanted])[wanted]
        return model.resume(h, edit.site.layer - 1, [wanted])[wanted]
