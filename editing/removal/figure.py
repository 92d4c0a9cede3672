"""The frontier of a removal: capability left against damage done, one curve per method."""

from typing import TYPE_CHECKING

from editing.removal.evaluation import GONE, Method, Removal
from editing.removal.frontier import Frontier
from editing.removal.result import RemovalResult
from sae_core.estimate import Estimate

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_COLOURS = {
    Method.FEATURES: "#1b4f9c",
    Method.PLAIN: "#7fa6dd",
    Method.LEACE: "#d97706",
    Method.MEANS: "#b3261e",
    Method.ORTHOGONAL: "#8b5cf6",
    Method.RANDOM_FEATURES: "#10b981",
    Method.RANDOM_DIRECTIONS: "#6b7280",
}
"""What is drawn; tuned erasers lie on the curves of the plain ones."""
LEAST = 1e-6
"""Damage below this is drawn here: the axis is logarithmic, and an edit of strength 0 does none."""


def removal_figure(result: RemovalResult) -> "Figure":
    """Curves at the chosen site and at all layers at once, strength running along each, or single edits."""
    from plotly.subplots import make_subplots

    panels = [(result.site, result.methods)]
    if result.everywhere:
        panels.append((result.everywhere[0].site, result.everywhere))
    titles = [site for site, _ in panels]
    figure = make_subplots(cols=len(panels), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=titles)
    shown: set[Method] = set()
    for column, (site, methods) in enumerate(panels, 1):
        figure.add_hrect(
            y0=0.5 - GONE, y1=0.5 + GONE, fillcolor="#10b981", opacity=0.12, line_width=0, row=1, col=column
        )
        curves = [curve for curve in result.frontiers if curve.site == site]
        for curve in curves:
            figure.add_trace(_curve(curve, first=curve.method not in shown), row=1, col=column)
            shown.add(curve.method)
        drawn = {curve.method for curve in curves}
        for removal in methods:
            if removal.method in _COLOURS and removal.method not in drawn:
                figure.add_trace(_point(removal, first=removal.method not in shown), row=1, col=column)
                shown.add(removal.method)
        figure.update_xaxes(title_text="damage elsewhere: KL per token, nats", type="log", row=1, col=column)
    said = f"logit({result.answers[0]}) - logit({result.answers[1]})"
    figure.update_yaxes(title_text=f"capability left: AUROC of {said}", range=[-0.03, 1.03], row=1, col=1)
    figure.update_layout(
        template="plotly_white",
        height=520,
        margin={"l": 70, "r": 20, "t": 90, "b": 60},
        font={"family": "Helvetica, Arial, sans-serif", "size": 13},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.08, "x": 0},
    )
    return figure


def _curve(curve: Frontier, *, first: bool):
    from plotly.graph_objects import Scatter

    points, damage = curve.points, [_on_axis(p.damage) for p in curve.points]
    features = curve.method == Method.FEATURES
    return Scatter(
        x=[estimate.value for estimate in damage],
        y=[p.auroc.value for p in points],
        name=curve.method,
        legendgroup=curve.method,
        showlegend=first,
        mode="lines+markers",
        line={"color": _COLOURS.get(curve.method), "width": 3 if features else 1.6},
        marker={"size": [11 if p.strength == 1 else 5 for p in points]},
        error_y=_bars([p.auroc for p in points]),
        error_x=_bars(damage),
        customdata=[[p.strength, p.within.value, p.within.low, p.within.high] for p in points],
        hovertemplate=f"{curve.method}, strength x %{{customdata[0]}}<br>AUROC %{{y:.3f}}, within sentences "
        "%{customdata[1]:.2f} [%{customdata[2]:.2f}, %{customdata[3]:.2f}]<br>damage %{x:.5f} nats/token",
    )


def _point(removal: Removal, *, first: bool):
    from plotly.graph_objects import Scatter

    damage = _on_axis(removal.damage)
    return Scatter(
        x=[damage.value],
        y=[removal.auroc.value],
        name=removal.method,
        legendgroup=removal.method,
        showlegend=first,
        mode="markers",
        marker={"size": 11, "color": _COLOURS.get(removal.method)},
        error_y=_bars([removal.auroc]),
        error_x=_bars([damage]),
        hovertemplate=f"{removal.method}<br>AUROC %{{y:.3f}}<br>damage %{{x:.5f}} nats/token",
    )


def _on_axis(damage: Estimate) -> Estimate:
    """The damage, drawn no lower than `LEAST`."""
    return Estimate(max(damage.value, LEAST), max(damage.low, LEAST), damage.high)


def _bars(estimates: list[Estimate]) -> dict:
    """Error bars from the intervals, which may end on one side of the value; none where there is no interval."""
    up = [max(0.0, estimate.high - estimate.value) for estimate in estimates]
    down = [max(0.0, estimate.value - estimate.low) for estimate in estimates]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 0.8, "width": 0}
