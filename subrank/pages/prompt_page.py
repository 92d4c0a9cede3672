"""The page of `subrank prompt`: sites by tokens, what is active in each cell, and the token or cell that is chosen.

There is no script: a cell links to its part of the list below, of which the style sheet shows what the address names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from circuits.features.feature_label import FeatureLabel
from circuits.prompt_view.placement import PlacedCircuit
from circuits.prompt_view.prompt_features import ActiveFeature, Cell, PromptFeatures, PromptToken
from sae_core.sites import FeatureId, Site
from subrank.pages.page import MISSING, render, visible_token

WIDTH, HEIGHT, SIDE, TOP = 132, 48, 96, 64
"""Of a column, a row, the column of sites and the row of next tokens, in pixels: edges are drawn over them."""
IN_CELL = 2
"""Features that are named in a cell."""


def prompt_section(
    view: PromptFeatures, labels: Mapping[FeatureId, FeatureLabel], circuit: PlacedCircuit | None
) -> Markup:
    """The grid, the list of every token's features, and what the numbers mean."""
    members = set(circuit.places) if circuit else set()
    sites = sorted({cell.site for cell in view.cells}, reverse=True)
    cells = {(cell.site, cell.position): cell for cell in view.cells}
    named = _Names(labels, members)
    tokens = [{"text": spaced(token.text), "likely": _likely(token)} for token in view.tokens]
    return render(
        "prompt.html",
        view=view,
        tokens=tokens,
        rows=[(site, [named.cell(cells.get((site, p))) for p in range(len(tokens))]) for site in sites],
        lists=[(p, [named.listed(c) for s in sites if (c := cells.get((s, p)))]) for p in range(len(tokens))],
        follows=[spaced(token.follows) for token in view.tokens],
        chances=[[(spaced(each.token), f"{each.probability:.1%}") for each in token.likely] for token in view.tokens],
        size={"width": WIDTH, "height": HEIGHT, "side": SIDE, "top": TOP},
        whole=(SIDE + WIDTH * len(tokens), TOP + HEIGHT * len(sites)),
        circuit=circuit,
        labelled=bool(labels),
        curves=_curves(circuit, sites) if circuit else [],
        outliers=sorted({cell.position for cell in view.cells if cell.outlier}),
    )


def spaced(token: str) -> str:
    """A token with its spaces visible."""
    return visible_token(token).replace(" ", "␣")


def _likely(token: PromptToken) -> list[tuple[str, str]]:
    """The next tokens that a column has room for, with their probabilities: the first, and others of 1% or more."""
    shown = [each for each in token.likely[:3] if each is token.likely[0] or each.probability >= 0.01]
    return [(spaced(each.token), f"{each.probability:.0%}") for each in shown]


@dataclass(frozen=True)
class _Names:
    """How features are called, and which are a circuit's."""

    labels: Mapping[FeatureId, FeatureLabel]
    members: set[FeatureId]

    def cell(self, cell: Cell | None) -> dict | None:
        """What stands in a cell: the circuit's features first, then the most active."""
        if cell is None:
            return None
        first = sorted(cell.features, key=lambda each: each.feature not in self.members)[:IN_CELL]
        features = [self.feature(each, cell) for each in first]
        strength = abs(cell.features[0].activation) / cell.norm if cell.features else 0.0
        return {"outlier": cell.outlier, "features": features, "strength": f"{min(1.0, strength):.2f}"}

    def listed(self, cell: Cell) -> dict:
        """A cell in the list of its token."""
        features = [self.feature(each, cell) for each in cell.features]
        return {
            "cell": cell,
            "features": features,
            "norm": f"{cell.norm:.3g}",
            "error": f"{cell.error:.0%}",
            "through": f"{cell.error_first_order:+z.2f}",
        }

    def feature(self, each: ActiveFeature, cell: Cell) -> dict:
        """A feature in words and rounded numbers."""
        label = self.labels.get(each.feature)
        numbers = {"direct": each.direct, "first": each.first_order, "exact": each.exact}
        return {
            "name": str(each.feature),
            "label": label.short if label else "",
            "more": " ".join(filter(None, (label.output, label.score))) if label else "",
            "member": each.feature in self.members,
            "activation": f"{each.activation:.3g}",
            "share": f"{abs(each.activation) / cell.norm:.0%}",
            "control": MISSING if each.control is None else f"{each.control:.2f}",
            **{name: MISSING if value is None else f"{value:+z.2f}" for name, value in numbers.items()},
        }


def _curves(circuit: PlacedCircuit, sites: Sequence[Site]) -> list[dict[str, str]]:
    """The edges as curves along the right of the cells, those to the readout up to the last column's next tokens."""
    strongest = max((abs(edge.effect) for edge in circuit.edges), default=1.0) or 1.0

    def place(feature: FeatureId | None, position: int) -> tuple[float, float]:
        row = TOP + HEIGHT * (sites.index(feature.site) + 0.5) if feature else TOP
        return SIDE + WIDTH * (position + 0.8), row

    curves = []
    for edge in circuit.edges:
        (x, y), (to_x, to_y) = place(edge.cause, edge.position), place(edge.target, edge.target_position)
        aside = min(WIDTH * 0.15, abs(y - to_y) / 8) if x == to_x else 0.0
        curves.append(
            {
                "path": f"M{x:g},{y:g}Q{(x + to_x) / 2 + 2 * aside:g},{(y + to_y) / 2:g} {to_x:g},{to_y:g}",
                "opacity": f"{0.15 + 0.5 * abs(edge.effect) / strongest:.2f}",
                "sign": "supports" if edge.effect > 0 else "inhibits",
            }
        )
    return curves
