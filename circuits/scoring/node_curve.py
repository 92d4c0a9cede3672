"""Faithfulness against number of nodes: how many members of a circuit are enough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuits.scoring.circuit_runs import Errors, by_site
from circuits.scoring.faithfulness import Scale, Share
from sae_core.sites import FeatureId


@dataclass(frozen=True)
class CurvePoint:
    """The first so many nodes of an order."""

    n_nodes: int
    ablated: Share
    """Faithfulness with error terms ablated."""
    kept: Share
    """With error terms kept."""


@dataclass(frozen=True)
class NodeCurve:
    """Faithfulness against number of nodes, members being added in one order."""

    order: str
    """By what the members are ordered."""
    ablation: str
    points: tuple[CurvePoint, ...]
    ceiling: Share

    def enough(self, share: float) -> int | None:
        """The least number of nodes whose faithfulness, errors ablated, is `share` of the ceiling; None if none is."""
        return next((p.n_nodes for p in self.points if p.ablated.value >= share * self.ceiling.value), None)

    def lines(self) -> list[str]:
        """The curve in words."""
        shown = ", ".join(f"{p.n_nodes}: {p.ablated.value:.3f}" for p in self.points)
        enough = self.enough(0.8)
        reached = "never reaches 0.8 of the ceiling" if enough is None else f"0.8 of the ceiling with {enough} nodes"
        return [f"faithfulness by number of nodes ({self.order}; {self.ablation}; errors ablated): {shown}; {reached}"]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the inverse."""
        points = [{"n_nodes": p.n_nodes, "ablated": p.ablated.to_json(), "kept": p.kept.to_json()} for p in self.points]
        return {"order": self.order, "ablation": self.ablation, "points": points, "ceiling": self.ceiling.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "NodeCurve":
        points = tuple(
            CurvePoint(p["n_nodes"], Share.from_json(p["ablated"]), Share.from_json(p["kept"])) for p in value["points"]
        )
        return cls(value["order"], value["ablation"], points, Share.from_json(value["ceiling"]))


def node_curve(
    scale: Scale, order: Sequence[FeatureId], name: str, *, counts: Sequence[int] | None = None
) -> NodeCurve:
    """Faithfulness of the first n nodes of `order`, from none to all, both ways; by default about 20 counts."""
    counts = default_counts(len(order)) if counts is None else sorted({min(n, len(order)) for n in counts})
    runs, circuits = scale.runs, [by_site(order[:n]) for n in counts]
    ablated, kept = (runs.values(circuits, errors) for errors in Errors)
    points = tuple(CurvePoint(n, scale.share(a), scale.share(k)) for n, a, k in zip(counts, ablated, kept, strict=True))
    ceiling = scale.share(runs.values([runs.everything()], Errors.ABLATED)[0])
    return NodeCurve(name, runs.ablation.name, points, ceiling)


def default_counts(most: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, 8, 12, 16, ... up to and with `most`."""
    steps = {step for k in range(most.bit_length()) for step in (2**k, 3 * 2**k // 2)}
    return sorted({0, most, *(n for n in steps if 0 < n < most)})
