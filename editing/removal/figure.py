"""Capability left against damage done, as a figure: one curve per method, strength running along it."""

from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING, Any

from editing.plotting import AMBER, BLUE, GREEN, GREY, PURPLE, RED, error_bars, styled
from editing.removal.measurement.curve import SHARES, Curve, CurvePoint
from editing.removal.measurement.evaluation import Method, Removal
from editing.removal.result import RemovalResult
from sae_core.estimate import Estimate

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

_COLOURS = {
    Method.FEATURES: BLUE,
    Method.PLAIN: "#5b8fd0",
    Method.MEAN: "#38a3c7",
    Method.RESAMPLED: "#9dbdea",
    Method.LEACE: AMBER,
    Method.MEANS: RED,
    Method.ORTHOGONAL: PURPLE,
    Method.RANDOM_FEATURES: GREEN,
    Method.RANDOM_DIRECTIONS: GREY,
}
LEAST = 1e-7
"""Smaller damage is drawn here: the axis is logarithmic, and an edit of strength 0 does none."""


def removal_figure(result: RemovalResult) -> "Figure":
    """Capability left against damage, at the chosen site and at all layers at once.

    A curve per method, with a large marker at the strength chosen for it; a point for the random edits. Lines lie where
    50, 80 and 90 % of the unedited model's capability are removed.
    """
    from plotly.subplots import make_subplots

    panels = [rows for rows in (result.methods, result.everywhere) if rows]
    titles = [rows[0].site for rows in panels]
    figure = make_subplots(cols=len(panels), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=titles)
    shown: set[Method] = set()
    for column, rows in enumerate(panels, 1):
        where: dict[str, Any] = {"row": 1, "col": column}
        curves = result.curves_at(rows[0].site)
        for row in rows:
            curve = curves.get(row.method)
            trace = _point(row) if curve is None else _curve(curve, row.strength)
            figure.add_trace(trace.update(showlegend=row.method not in shown), **where)
            shown.add(row.method)
        for share in SHARES:  # after the curves: plotly draws no line into an empty panel
            label = {"text": f"{share:.0%} removed", "font": {"size": 11, "color": GREY}}
            line = {"color": GREY, "width": 1, "dash": "dot"}
            height = (1 - share) * result.unedited.left
            figure.add_hline(height, line=line, annotation=label, annotation_position="top left", **where)
        title = "damage to other text: KL per token, nats"
        figure.update_xaxes(title_text=title, type="log", exponentformat="power", dtick=1, **where)
    difference = f"logit({result.answers[0]}) - logit({result.answers[1]})"
    title = f"capability left: 2 |AUROC of {difference} - 0.5|"
    figure.update_yaxes(title_text=title, range=[-0.03, 1.03], row=1, col=1)
    return styled(figure, height=560, top=110)


def _curve(curve: Curve, chosen: float) -> "Scatter":
    """A curve, with a large marker at the chosen strength; between the points that were run it may touch zero."""
    from plotly.graph_objects import Scatter

    points = curve.points
    nearest = min(points, key=lambda point: abs(point.strength - chosen))
    rows = [(_on_axis(p.damage), p.left, 12 if p is nearest else 4, _hover(curve, p)) for p in points]
    for i, (before, after) in reversed([*enumerate(pairwise(points), 1)]):
        if (damage := _damage_at_chance(before, after)) is not None:
            rows.insert(i, (_on_axis(Estimate(damage)), Estimate(0.0), 0, "the answers turn round"))
    damages, lefts, sizes, hovers = (list(column) for column in zip(*rows, strict=True))
    return Scatter(
        x=[damage.value for damage in damages],
        y=[left.value for left in lefts],
        mode="lines+markers",
        line={"color": _COLOURS[curve.method], "width": 3 if curve.method is Method.FEATURES else 1.6},
        marker={"size": sizes},
        error_y=error_bars(lefts),
        error_x=error_bars(damages),
        hovertext=hovers,
        hovertemplate="%{hovertext}<extra></extra>",
        name=curve.method,
        legendgroup=curve.method,
    )


def _hover(curve: Curve, point: CurvePoint) -> str:
    place = f" ({curve.place})" if curve.place else ""
    return (
        f"{curve.method}{place}, strength {point.strength:.2f}<br>capability left {point.left:.2f}<br>"
        f"AUROC {point.auroc:.2f}, within sentences {point.within:.2f}<br>accuracy {point.accuracy:.2f}, "
        f"P(right) - P(wrong) {point.gap:.2f}<br>damage {point.damage:.2g} nats/token"
    )


def _damage_at_chance(before: CurvePoint, after: CurvePoint) -> float | None:
    """Where the AUROC passes 0.5 between two points, along straight lines of it and of the root of the damage."""
    above, below = before.auroc.value - 0.5, after.auroc.value - 0.5
    if above * below >= 0:
        return None
    first, last = (sqrt(max(0.0, point.damage.value)) for point in (before, after))
    return (first + above / (above - below) * (last - first)) ** 2


def _point(row: Removal) -> "Scatter":
    """A method that has no curve."""
    from plotly.graph_objects import Scatter

    damage = _on_axis(row.damage)
    return Scatter(
        x=[damage.value],
        y=[row.left],
        mode="markers",
        marker={"color": _COLOURS[row.method], "size": 12, "symbol": "diamond"},
        error_x=error_bars([damage]),
        hovertemplate=f"{row.method}<br>capability left %{{y:.3f}}<br>damage %{{x:.2g}} nats/token<extra></extra>",
        name=row.method,
        legendgroup=row.method,
    )


def _on_axis(damage: Estimate) -> Estimate:
    """The damage, drawn no lower than `LEAST`."""
    return Estimate(max(damage.value, LEAST), max(damage.low, LEAST), max(damage.high, LEAST))
