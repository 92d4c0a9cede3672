"""Intervene and check: scale one node of a circuit and see whether the nodes below its edges move as the edges say.

An edge of effect E (`circuits.graph.Edge`) says that a target loses the share E when its cause is ablated.
If causes act in proportion, scaling the cause by s changes the target by (s - 1) E of itself:

    change = (sum a_scaled - sum a_clean) / |sum a_clean|    over the target's examples, at their ends

measured in the real model, the cause scaled at all content positions and its error term kept. At s = 0, on
the examples of discovery, this is the edge measured again; other factors and other examples can disagree.
Control: nodes of the same two sites between which the circuit has no edge should hardly move.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from circuits.effects.targets import FeatureTarget, Target
from circuits.features.atlas import Examples
from circuits.graph import Edge, NodeId, parse_node
from editing.interventions.patch import scale
from editing.tasks.pairs import at_end
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.evaluation.reconstruction import finite
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import FeatureId, Site, Stream

FACTORS = (0.0, 0.5, 2.0)


@dataclass(frozen=True)
class Move:
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

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the inverse."""
        numbers = {"factor": self.factor, "change": self.change, "effect": self.effect}
        return {"cause": str(self.cause), "target": str(self.target)} | numbers

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Move":
        cause, target = FeatureId.parse(value["cause"]), parse_node(value["target"])
        return cls(cause, target, value["factor"], value["change"], value["effect"])


@dataclass(frozen=True)
class Agreement:
    """Changes beside what the edges predict, for one factor."""

    factor: float
    n_edges: int
    correlation: float
    """Pearson's, of changes with predictions over edges; NaN where either does not vary."""
    same_sign: float
    """Share of edges whose target moves in the direction that the edge says."""
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
class Moves:
    """All interventions on one circuit."""

    moves: tuple[Move, ...]
    """Of edges and, with no effect, of controls."""
    left_out: int
    """Edges that were not tried: their cause is no feature, or their target had no examples."""

    def agreement(self) -> list[Agreement]:
        """One for each factor, in order."""
        return [self._of(factor) for factor in sorted({move.factor for move in self.moves})]

    def _of(self, factor: float) -> Agreement:
        edges = [m for m in self.moves if m.factor == factor and m.effect is not None]
        controls = [m for m in self.moves if m.factor == factor and m.effect is None]
        found = torch.tensor([[m.change, m.predicted] for m in edges], dtype=torch.float64)
        return Agreement(
            factor=factor,
            n_edges=len(edges),
            correlation=_correlation(found[:, 0], found[:, 1]),
            same_sign=(found[:, 0].sign() == found[:, 1].sign()).double().mean().item(),
            edges_move=found[:, 0].abs().mean().item(),
            n_controls=len(controls),
            controls_move=sum(abs(m.change) for m in controls) / len(controls) if controls else math.nan,
        )

    def lines(self) -> list[str]:
        """One line per factor."""
        return [one.sentence() for one in self.agreement()]

    def to_json(self) -> dict[str, Any]:
        """Every move, and the agreement; `from_json` is the inverse."""
        summary = [
            asdict(one) | {"correlation": finite(one.correlation), "controls_move": finite(one.controls_move)}
            for one in self.agreement()
        ]
        return {"moves": [m.to_json() for m in self.moves], "left_out": self.left_out, "agreement": summary}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Moves":
        return cls(tuple(map(Move.from_json, value["moves"])), value["left_out"])


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = x.norm() * y.norm()
    return (x @ y / size).item() if size > 0 else math.nan


@torch.no_grad()
def intervene(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    edges: Sequence[Edge],
    examples: Mapping[NodeId, Examples],
    *,
    readouts: Sequence[Target] = (),
    factors: Sequence[float] = FACTORS,
    generator: torch.Generator,
    most_controls: int = 64,
) -> Moves:
    """Scale the cause of every edge, one at a time, and read its target on the target's examples.

    `examples` should be ones that discovery has not seen; `readouts` are the targets of the circuit that are no
    features. Controls are drawn from the pairs of nodes that lie at the sites of some edge and have none.
    Raises `UserError` where no edge can be tried, for a factor of 1, and for a target that is zero on its examples.
    """
    if 1 in factors or not factors:
        raise UserError(
            f"scaling by {', '.join(map(str, factors)) or 'nothing'} cannot move anything; give other factors"
        )
    targets = {target.node: target for target in readouts}
    nodes = {node for edge in edges for node in (edge.cause, edge.target)}
    for node in nodes:
        if isinstance(node, FeatureId) and node.site in dictionaries:
            targets[node] = FeatureTarget(node, dictionaries[node.site])
    tried = [e for e in edges if e.target in examples and e.target in targets and isinstance(e.cause, FeatureId)]
    if not tried:
        raise UserError("no edge of this circuit can be checked: none of its targets has examples; give more text")
    pairs = [(e.cause, e.target, e.effect) for e in tried]
    free = _without_edge(edges, [target for target in examples if target in targets and target in nodes], targets)
    drawn = torch.randperm(len(free), generator=generator)[:most_controls].sort().values
    pairs += [(*free[k], None) for k in drawn.tolist()]

    moves = []
    for target in dict.fromkeys(target for _, target, _ in pairs):
        causes = [(cause, effect) for cause, own, effect in pairs if own == target]
        changes = _changes(
            model, dictionaries, [cause for cause, _ in causes], targets[target], examples[target], factors
        )
        moves += [
            Move(cause, target, factor, float(change), effect)
            for (cause, effect), row in zip(causes, changes, strict=True)
            for factor, change in zip(factors, row, strict=True)
        ]
    return Moves(tuple(moves), len(edges) - len(tried))


def _without_edge(
    edges: Sequence[Edge], asked: Sequence[NodeId], targets: Mapping[NodeId, Target]
) -> list[tuple[FeatureId, NodeId]]:
    """Pairs of a feature and an asked target that have no edge, at sites between which there are edges."""
    linked = {(edge.cause, edge.target) for edge in edges}
    sites = {(edge.cause.site, targets[edge.target].site) for edge in edges
             if isinstance(edge.cause, FeatureId) and edge.target in targets}  # fmt: skip
    causes = sorted({node for edge in edges for node in (edge.cause, edge.target) if isinstance(node, FeatureId)})
    return [
        (cause, target)
        for target in sorted(asked, key=str)
        for cause in causes
        if (cause.site, targets[target].site) in sites and (cause, target) not in linked and cause != target
    ]


def _changes(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    causes: Sequence[FeatureId],
    target: Target,
    examples: Examples,
    factors: Sequence[float],
) -> list[list[float]]:
    """The target's relative change for every cause and factor."""
    end, tokens = examples.end, examples.tokens[:, : int(examples.end.max()) + 1]
    start = {cause.site: _start(cause.site) for cause in causes}
    recorded = model.record(tokens, {target.site, *(site for site in start.values() if site is not None)})
    everyone = torch.arange(len(end), device=model.device)
    mask = model.content(tokens).to(model.device)

    def total(h: Tensor) -> float:
        return target.read(at_end(h, end), everyone).double().sum().item()

    clean = total(recorded[target.site])
    if not clean:
        raise UserError(f"{target.node} is zero on the examples on which its causes should be checked; give others")
    found = []
    for cause in causes:
        edits = [scale(cause.site, dictionaries[cause.site], [cause], factor, mask=mask) for factor in factors]
        h = recorded.get(start[cause.site])
        found.append([(total(_after(model, tokens, edit, h, target.site)) - clean) / abs(clean) for edit in edits])
    return found


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
