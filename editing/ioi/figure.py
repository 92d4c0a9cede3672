"""Plots of the IOI experiment, as plotly figures."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from typing import TYPE_CHECKING

from editing.ioi.baselines import BASELINE_NAMES, Baseline
from editing.ioi.curve import Curve
from editing.ioi.feature_selection import PER_PAIR, Selector
from editing.ioi.result import IOIResult
from editing.plotting import AMBER, BLUE, GREEN, GREY, PURPLE, RED, styled
from sae_core.estimate import Estimate
from sae_core.marks import marked

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

Labels = Mapping[str, Mapping[str, str]]
"""What features respond to, in words: by the name of their curve, then by `str(FeatureId)`."""

_COLOURS = {
    BASELINE_NAMES[Baseline.PCA]: AMBER,
    BASELINE_NAMES[Baseline.NONNEGATIVE_PCA]: RED,
    BASELINE_NAMES[Baseline.ICA]: "#78350f",
    BASELINE_NAMES[Baseline.NEURONS]: GREY,
    BASELINE_NAMES[Baseline.RANDOM_BASIS]: "#9ca3af",
}
_SHADES = (BLUE, PURPLE, "#0891b2", "#be185d", "#4d7c0f", "#b45309", "#1e3a8a", "#0f766e")
"""Colours of dictionaries, in turn."""
_SELECTOR_COLOURS: dict[str, str] = {
    Selector.GREEDY: BLUE,
    Selector.ATTRIBUTION: AMBER,
    Selector.THRESHOLD: PURPLE,
    Selector.RANDOM: GREEN,
    PER_PAIR: RED,
}


def ioi_figure(result: IOIResult, labels: Labels | None = None) -> "Figure":
    """KL from the clean run and recovered logit difference, against number of features and against edit size.

    One curve per method, with its 95% band; hovering names the features that came with a point, with their labels.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=2, shared_yaxes=True, horizontal_spacing=0.06, vertical_spacing=0.14)
    colours = {curve.name: colour for curve, colour in _coloured(result.main())}
    for curve in result.main():
        colour, width = colours[curve.name], 3 if curve.name in result.floors else 1.6
        hover = _hover(curve, (labels or {}).get(curve.name, {}))
        counts, sizes = _on_axis(curve), [p.edit_size.value for p in curve.points]
        for row, estimates in ((1, [p.kl for p in curve.points]), (2, [p.recovered for p in curve.points])):
            for column, x in ((1, counts), (2, sizes)):
                line = _line(x, [y.value for y in estimates], hover, curve.name, {"color": colour, "width": width})
                line.showlegend = (row, column) == (1, 1)
                figure.add_traces([_band(x, estimates, colour, curve.name), line], rows=row, cols=column)
    for name, floor in result.floors.items():
        line = {"dash": "dot", "color": colours[name], "width": 1}
        for column in (1, 2):
            figure.add_hline(y=floor["all_latents"], line=line, row=1, col=column)  # pyright: ignore[reportArgumentType]
    for row in (1, 2):
        figure.update_xaxes(**_counts_axis(result.main()), row=row, col=1)
        figure.update_xaxes(title_text="mean edit size |x' - x̄|", row=row, col=2)
    figure.update_yaxes(title_text="KL(clean ‖ patched), nats", row=1, col=1)
    figure.update_yaxes(title_text="logit difference recovered", row=2, col=1)
    return styled(figure, height=680)


def kl_figure(result: IOIResult) -> "Figure":
    """KL from the clean run against number of features, a curve per method with its 95% band."""
    from plotly.graph_objects import Figure

    figure = Figure()
    for curve, colour in _coloured(result.main()):
        kl, x = [point.kl for point in curve.points], _on_axis(curve)
        line = {"color": colour, "width": 3 if curve.name in result.floors else 1.6}
        figure.add_traces(
            [_band(x, kl, colour, curve.name), _line(x, [y.value for y in kl], _hover(curve, {}), curve.name, line)]
        )
    figure.update_xaxes(**_counts_axis(result.main()))
    figure.update_yaxes(title_text="KL(clean ‖ patched), nats")
    return styled(figure, height=400)


def _coloured(curves: Sequence[Curve]) -> list[tuple[Curve, str]]:
    """Every curve with its method's colour, dictionaries in turn."""
    return [(curve, _COLOURS.get(curve.name) or _SHADES[i % len(_SHADES)]) for i, curve in enumerate(curves)]


def selection_figure(result: IOIResult) -> "Figure":
    """KL of each dictionary against number of features, by how they were chosen."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for curve in result.curves:
        if curve.name in result.floors:
            prefix = f"{curve.name}, " if len(result.floors) > 1 else ""
            figure.add_trace(
                Scatter(
                    x=_on_axis(curve),
                    y=[p.kl.value for p in curve.points],
                    customdata=[p.n_features for p in curve.points],
                    name=f"{prefix}{curve.selection} ({curve.forwards:,} prompts run)",
                    mode="lines+markers",
                    marker={"size": 5},
                    line={"color": _SELECTOR_COLOURS.get(curve.selection), "width": 2},
                    hovertemplate="%{customdata} features: %{y:.3f} nats",
                )
            )
    figure.update_xaxes(**_counts_axis(result.curves))
    figure.update_yaxes(title_text="KL(clean ‖ patched), nats", rangemode="tozero")
    return styled(figure, height=420)


def _on_axis(curve: Curve) -> list[float]:
    """Numbers of features on a logarithmic axis that begins with none, which stands at one half."""
    return [max(float(point.n_features), 0.5) for point in curve.points]


def _counts_axis(curves: Sequence[Curve]) -> dict:
    """An axis as far as the data reach, in doublings."""
    most = max(point.n_features for curve in curves for point in curve.points)
    ticks = [2**i for i in range(most.bit_length())]
    labels = {"tickvals": [0.5, *ticks], "ticktext": ["0", *map(str, ticks)]}
    return {"title_text": "patched features", "type": "log", **labels}


def _line(x: Sequence[int | float], y: Sequence[float], hover: list[list], name: str, line: dict) -> "Scatter":
    """The values of a curve; `hover` has number of features, edit size and added features of every point."""
    from plotly.graph_objects import Scatter

    return Scatter(
        x=x,
        y=y,
        name=name,
        legendgroup=name,
        mode="lines+markers",
        line=line,
        marker={"size": 4},
        customdata=hover,
        hovertemplate="%{customdata[0]} features, edit size %{customdata[1]:.2f}: %{y:.3f}%{customdata[2]}",
    )


def _band(x: Sequence[int | float], estimates: Sequence[Estimate], colour: str, name: str) -> "Scatter":
    """The area between the ends of the intervals, where there are any."""
    from plotly.graph_objects import Scatter

    points = [(at, y.low, y.high) for at, y in zip(x, estimates, strict=True) if isfinite(y.low + y.high)]
    return Scatter(
        x=[at for at, _, _ in points] + [at for at, _, _ in reversed(points)],
        y=[low for _, low, _ in points] + [high for _, _, high in reversed(points)],
        fill="toself",
        fillcolor=colour,
        opacity=0.14,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=name,
        showlegend=False,
    )


def _hover(curve: Curve, labels: Mapping[str, str], most: int = 5) -> list[list]:
    """For every point: number of features, edit size, and which features came with it, as lines of a hover text."""
    rows, before = [], 0
    for point in curve.points:
        new = curve.order[before : point.n_features]
        lines = [f"+ {name}{f': {escape(marked(labels[name]))}' if name in labels else ''}" for name in new[:most]]
        more = point.n_features - before - len(lines)
        text = "".join(f"<br>{line}" for line in lines) + (f"<br>+ {more} more" if new and more > 0 else "")
        rows.append([point.n_features, point.edit_size.value, text])
        before = point.n_features
    return rows
