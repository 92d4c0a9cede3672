"""Faithfulness against number of nodes: how many members of a circuit are enough."""

from collections.abc import Sequence
from dataclasses import dataclass

from circuits.scoring.circuit_runs import Errors, by_site
from circuits.scoring.faithfulness import Scale
from sae_core.estimate import Estimate
from sae_core.sites import FeatureId

ENOUGH = 0.8
"""Share of the ceiling that counts as reaching it."""


@dataclass(frozen=True)
class NodeCurvePoint:
    """Faithfulness of the first `n_nodes` of an order."""

    n_nodes: int
    ablated: Estimate
    """With error terms ablated."""
    kept: Estimate
    """With error terms kept."""


@dataclass(frozen=True)
class NodeCurve:
    """Faithfulness against number of nodes, members being added in one order."""

    order: str
    """By what the members are ordered."""
    ablation: str
    points: tuple[NodeCurvePoint, ...]
    ceiling: Estimate

    def enough(self, share: float) -> int | None:
        """The least number of nodes whose faithfulness, errors ablated, is `share` of the ceiling; None if none is."""
        return next((p.n_nodes for p in self.points if p.ablated.value >= share * self.ceiling.value), None)

    def lines(self) -> list[str]:
        """The curve in words."""
        shown = ", ".join(f"{p.n_nodes}: {p.ablated.value:.3f}" for p in self.points)
        n = self.enough(ENOUGH)
        reached = f"never reaches {ENOUGH} of the ceiling" if n is None else f"{ENOUGH} of the ceiling with {n} nodes"
        return [f"faithfulness by number of nodes ({self.order}; {self.ablation}; errors ablated): {shown}; {reached}"]


def node_curve(
    scale: Scale, order: Sequence[FeatureId], name: str, *, counts: Sequence[int] | None = None
) -> NodeCurve:
    """Faithfulness of the first n nodes of `order`, with errors ablated and kept; by default of about 20 counts."""
    counts = node_counts(len(order)) if counts is None else sorted({min(n, len(order)) for n in counts})
    runs, circuits = scale.runs, [by_site(order[:n]) for n in counts]
    ablated, kept = (runs.values(circuits, errors) for errors in Errors)
    points = tuple(
        NodeCurvePoint(n, scale.share(a), scale.share(k)) for n, a, k in zip(counts, ablated, kept, strict=True)
    )
    ceiling = scale.share(runs.values([runs.everything()], Errors.ABLATED)[0])
    return NodeCurve(name, runs.ablation.name, points, ceiling)


def node_counts(most: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, 8, 12, 16, ... up to and with `most`."""
    steps = {step for k in range(most.bit_length()) for step in (2**k, 3 * 2**k // 2)}
    return sorted({0, most, *(n for n in steps if 0 < n < most)})
