"""Plots of the IOI experiment, as plotly figures."""

from collections.abc import Mapping
from html import escape
from math import isfinite
from typing import TYPE_CHECKING

from editing.ioi.baselines import SHOWN, Baseline
from editing.ioi.feature_selection import Selector
from editing.ioi.study import IOIResult
from editing.plotting import AMBER, BLUE, GREEN, GREY, PURPLE, RED, styled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

    from editing.ioi.curve import Curve

Labels = Mapping[str, Mapping[str, str]]
"""What features respond to, in words: by the name of their curve, then by their own (`str(FeatureId)`)."""

_COLOURS = {
    SHOWN[Baseline.PCA]: AMBER,
    SHOWN[Baseline.NONNEGATIVE_PCA]: RED,
    SHOWN[Baseline.ICA]: "#78350f",
    SHOWN[Baseline.NEURONS]: GREY,
    SHOWN[Baseline.RANDOM_BASIS]: "#9ca3af",
}
_SHADES = (BLUE, PURPLE, "#0891b2", "#be185d", "#4d7c0f", "#b45309", "#1e3a8a", "#0f766e")
"""Of dictionaries, in turn."""
_CHOSEN = {
    Selector.GREEDY: BLUE,
    Selector.ATTRIBUTION: AMBER,
    Selector.THRESHOLD: PURPLE,
    Selector.RANDOM: GREEN,
}


def ioi_figure(result: IOIResult, labels: Labels | None = None) -> "Figure":
    """KL from the clean run and recovered logit difference, against number of features and against edit size.

    One curve per method, with its 95% band; hovering names the features that came with a point, with their labels.
    """
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=2, shared_yaxes=True, horizontal_spacing=0.06, vertical_spacing=0.14)
    names = [curve.name for curve in result.main()]
    colours = {name: _COLOURS.get(name) or _SHADES[number % len(_SHADES)] for number, name in enumerate(names)}
    for curve in result.main():
        own, colour = curve.name in result.floors, colours[curve.name]
        known = (labels or {}).get(curve.name, {})
        hover = [_added(curve, row, known) for row in range(len(curve.points))]
        for row, field in ((1, "kl"), (2, "recovered")):
            for column, axis in ((1, "n_features"), (2, "edit_size")):
                x, y = ([getattr(p, name) for p in curve.points] for name in (axis, field))
                place = {"row": row, "col": column}
                figure.add_trace(_band(x, [p.intervals.get(field) for p in curve.points], colour, curve.name), **place)
                figure.add_trace(
                    Scatter(
                        x=x,
                        y=y,
                        name=curve.name,
                        legendgroup=curve.name,
                        showlegend=(row, column) == (1, 1),
                        mode="lines+markers",
                        line={"color": colour, "width": 3 if own else 1.6},
                        marker={"size": 4},
                        customdata=[
                            [p.n_features, p.edit_size, text] for p, text in zip(curve.points, hover, strict=True)
                        ],
                        hovertemplate="%{customdata[0]} features, edit size %{customdata[1]:.2f}: "
                        "%{y:.3f}%{customdata[2]}",
                    ),
                    **place,
                )
    for name, own in result.floors.items():
        line = {"dash": "dot", "color": colours[name], "width": 1}
        for column in (1, 2):
            figure.add_hline(y=own["all_latents"], line=line, row=1, col=column)
    for row in (1, 2):
        figure.update_xaxes(title_text="patched features", range=[0, 64], row=row, col=1)
        figure.update_xaxes(title_text="mean edit size |x' - x̄|", row=row, col=2)
    figure.update_yaxes(title_text="KL(clean ‖ patched), nats", row=1, col=1)
    figure.update_yaxes(title_text="logit difference recovered", row=2, col=1)
    return styled(figure, height=680)


def selection_figure(result: IOIResult) -> "Figure":
    """KL of each dictionary against number of features, by how they were chosen."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for curve in result.curves:
        if curve.name in result.floors:
            figure.add_trace(
                Scatter(
                    x=[p.n_features for p in curve.points],
                    y=[p.kl for p in curve.points],
                    name=_chosen(curve, result),
                    mode="lines+markers",
                    marker={"size": 5},
                    line={"color": _CHOSEN.get(curve.selection), "width": 2},
                    hovertemplate="%{x} features: %{y:.3f} nats",
                )
            )
    figure.update_xaxes(title_text="patched features", range=[0, 64])
    figure.update_yaxes(title_text="KL(clean ‖ patched), nats", rangemode="tozero")
    return styled(figure, height=420)


def _chosen(curve: "Curve", result: IOIResult) -> str:
    whose = f"{curve.name}, " if len(result.floors) > 1 else ""
    return f"{whose}{curve.selection} ({curve.forwards:,} prompts run)"


def _band(x: list, intervals: list, colour: str, name: str) -> "Scatter":
    """The area between the ends of the intervals."""
    from plotly.graph_objects import Scatter

    known = [(at, *own) for at, own in zip(x, intervals, strict=True) if own is not None and isfinite(own[0] + own[1])]
    return Scatter(
        x=[at for at, _, _ in known] + [at for at, _, _ in reversed(known)],
        y=[low for _, low, _ in known] + [high for _, _, high in reversed(known)],
        fill="toself",
        fillcolor=colour,
        opacity=0.14,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=name,
        showlegend=False,
    )


def _added(curve: "Curve", row: int, labels: Mapping[str, str], most: int = 5) -> str:
    """Which features came with a point, as lines of a hover text."""
    before = curve.points[row - 1].n_features if row else 0
    new = curve.order[before : curve.points[row].n_features]
    lines = [f"+ {name}{f' ({escape(labels[name])})' if name in labels else ''}" for name in new[:most]]
    more = curve.points[row].n_features - before - len(lines)
    return "".join(f"<br>{line}" for line in lines) + (f"<br>+ {more} more" if new and more > 0 else "")
