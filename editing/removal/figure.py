"""The frontier of a removal: capability left against damage done, one curve per method."""

from typing import TYPE_CHECKING, Any

from editing.plotting import AMBER, BLUE, GREEN, GREY, RED, error_bars, styled
from editing.removal.comparisons import Frontier, FrontierPoint
from editing.removal.evaluation import GONE, Method
from editing.removal.result import RemovalResult
from sae_core.estimate import Estimate

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

_COLOURS = {
    Method.FEATURES: BLUE,
    Method.PLAIN: "#7fa6dd",
    Method.LEACE: AMBER,
    Method.MEANS: RED,
    Method.ORTHOGONAL: "#8b5cf6",
    Method.RANDOM_FEATURES: GREEN,
    Method.RANDOM_DIRECTIONS: GREY,
}
"""The methods that are drawn; tuned erasers lie on the curves of the plain ones."""
LEAST = 1e-6
"""Smaller damage is drawn here: the axis is logarithmic, and an edit of strength 0 does none."""


def removal_figure(result: RemovalResult) -> "Figure":
    """Capability left against damage, at the chosen site and at all layers at once.

    A curve per method with a frontier, strength running along it; a point for the others.
    """
    from plotly.subplots import make_subplots

    panels = [(result.site, result.methods)]
    if result.everywhere:
        panels.append((result.everywhere[0].site, result.everywhere))
    titles = [site for site, _ in panels]
    figure = make_subplots(cols=len(panels), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=titles)
    shown: set[Method] = set()
    for column, (site, methods) in enumerate(panels, 1):
        place: dict[str, Any] = {"row": 1, "col": column}
        figure.add_hrect(y0=0.5 - GONE, y1=0.5 + GONE, fillcolor=GREEN, opacity=0.12, line_width=0, **place)
        curves = [curve for curve in result.frontiers if curve.site == site]
        drawn = {curve.method for curve in curves}
        points = [m for m in methods if m.method in _COLOURS and m.method not in drawn]
        curves += [Frontier(m.method, site, (FrontierPoint(1.0, m.auroc, m.within, m.damage),)) for m in points]
        for curve in curves:
            figure.add_trace(_curve(curve, first=curve.method not in shown), **place)
            shown.add(curve.method)
        figure.update_xaxes(title_text="damage to other text: KL per token, nats", type="log", **place)
    difference = f"logit({result.answers[0]}) - logit({result.answers[1]})"
    figure.update_yaxes(title_text=f"capability left: AUROC of {difference}", range=[-0.03, 1.03], row=1, col=1)
    return styled(figure, height=520, top=90)


def _curve(curve: Frontier, *, first: bool) -> "Scatter":
    from plotly.graph_objects import Scatter

    points, damage, colour = curve.points, [_on_axis(p.damage) for p in curve.points], _COLOURS.get(curve.method)
    return Scatter(
        x=[estimate.value for estimate in damage],
        y=[p.auroc.value for p in points],
        name=curve.method,
        legendgroup=curve.method,
        showlegend=first,
        mode="lines+markers" if len(points) > 1 else "markers",
        line={"color": colour, "width": 3 if curve.method == Method.FEATURES else 1.6},
        marker={"color": colour, "size": [11 if p.strength == 1 else 5 for p in points]},
        error_y=error_bars([p.auroc for p in points]),
        error_x=error_bars(damage),
        customdata=[[p.strength, p.within.value, p.within.low, p.within.high] for p in points],
        hovertemplate=f"{curve.method}, strength x %{{customdata[0]}}<br>AUROC %{{y:.3f}}, within sentences "
        "%{customdata[1]:.2f} [%{customdata[2]:.2f}, %{customdata[3]:.2f}]<br>damage %{x:.5f} nats/token",
    )


def _on_axis(damage: Estimate) -> Estimate:
    """The damage, drawn no lower than `LEAST`."""
    return Estimate(max(damage.value, LEAST), max(damage.low, LEAST), damage.high)
