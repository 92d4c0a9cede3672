"""What a study of scaling draws: laws with their points and residuals, and metrics over sizes and k."""

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from editing.plotting import AMBER, BLUE, GREEN, GREY, PURPLE, RED, error_bars, styled
from subrank.studies.laws.power_law import Law
from subrank.studies.laws.scaling_laws import LOSSES, Laws, Point, Series, finished
from subrank.studies.metrics.measured import METRICS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = (BLUE, AMBER, GREEN, RED, PURPLE, "#0891b2", "#db2777", GREY)
ACROSS = 4
"""Plots side by side, at most."""


def all_figures(laws: Laws) -> "dict[str, Figure]":
    """L(n) of every site and loss, L(C) of every site, the metrics, and dictionaries read at other k."""
    figures = {}
    for site in dict.fromkeys(series.site for series in laws.series):
        here = [series for series in laws.series if series.site == site]
        for loss in LOSSES:
            if any(loss in series.sizes for series in here):
                figures[f"{LOSSES[loss]} over n at {site}"] = size_figure(here, laws.points, loss)
        if any(series.hull for series in here):
            figures[f"FVU over compute at {site}"] = compute_figure(here, laws.points)
    metrics = {"metrics": metric_figure(laws)} if laws.metrics else {}
    has_curves = any(each.curve for by_site in laws.metrics.values() for each in by_site.values())
    return figures | metrics | ({"other k": read_figure(laws)} if has_curves else {})


def _members(series: Series, points: Sequence[Point]) -> list[Point]:
    members = [p for p in points if (p.site, p.kind, p.k) == (series.site, series.kind, series.k)]
    return sorted(members, key=lambda p: p.n_latents)


def size_figure(here: Sequence[Series], points: Sequence[Point], loss: str) -> "Figure":
    """The loss over n at one site, a law per kind and k, dotted where it is read beyond its points; residuals below."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    drawn = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.75, 0.25], vertical_spacing=0.05)
    for rank, series in enumerate(series for series in here if loss in series.sizes):
        size, members = series.sizes[loss], finished(_members(series, points), loss)
        n, colour = [p.n_latents for p in members], COLOURS[rank % len(COLOURS)]
        look = {"legendgroup": series.name, "marker": {"color": colour}}
        marks = Scatter(
            x=n,
            y=[getattr(p, loss) for p in members],
            name=f"{series.kind} k={series.k}",
            mode="markers",
            text=[escape(p.name) for p in members],
            hovertemplate="%{text}<br>n %{x:,}: %{y:.4f}<extra></extra>",
            **look,
        )
        drawn.add_trace(marks, row=1, col=1)
        ends = [(min(n), max(n), "solid")] + [(max(n), size.beyond, "dot")] * (size.predicted is not None)
        for low, high, dash in ends:
            x = np.geomspace(low, high, 50)
            line = {"color": colour, "dash": dash, "width": 1.5}
            how = {"mode": "lines", "line": line, "showlegend": False, "hoverinfo": "skip"}
            drawn.add_trace(Scatter(x=x, y=size.law.at({"n": x}), legendgroup=series.name, **how), row=1, col=1)
        _residuals(drawn, n, size.law, look, 1)
    drawn.update_xaxes(type="log", dtick=math.log10(2), tickformat=",")
    drawn.update_xaxes(title_text="latents n", row=2)
    drawn.update_yaxes(title_text=LOSSES[loss], type="log", row=1)
    drawn.update_yaxes(title_text="residual, %", row=2)
    return styled(drawn, height=560)


def _residuals(drawn: "Figure", x: Sequence[float], law: Law, look: dict, col: int) -> None:
    """100 (ln L - law) below the law, from zero on."""
    from plotly.graph_objects import Scatter

    values = [100 * each for each in law.residuals]
    bars = {"type": "data", "symmetric": False, "array": [0.0] * len(values), "arrayminus": values, "width": 0}
    hover = "%{x:,.3g}: %{y:+.2f}%<extra></extra>"
    how = {"mode": "markers", "showlegend": False, "error_y": bars, "hovertemplate": hover}
    drawn.add_trace(Scatter(x=x, y=values, **how, **look), row=2, col=col)


def compute_figure(here: Sequence[Series], points: Sequence[Point]) -> "Figure":
    """Loss over compute at one site: dictionaries on their way, the hull, and the law through it, side by side by k."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    shown = [series for series in here if series.hull][:ACROSS]
    drawn = make_subplots(
        rows=2,
        cols=len(shown),
        shared_xaxes=True,
        shared_yaxes=True,
        row_heights=[0.75, 0.25],
        vertical_spacing=0.05,
        horizontal_spacing=0.03,
        subplot_titles=[f"{series.kind} k={series.k}" for series in shown],
    )
    sizes = sorted({point.n_latents for series in shown for point in _members(series, points)})
    legend: set[str] = set()
    for col, series in enumerate(shown, 1):
        for point in _members(series, points):
            colour, name = COLOURS[sizes.index(point.n_latents) % len(COLOURS)], f"n={point.n_latents:,}"
            look = {"line": {"color": colour, "width": 1}, "marker": {"size": 4}, "legendgroup": name}
            x, y = zip(*((c.flops, c.loss) for c in point.checkpoints), strict=True) if point.checkpoints else ((), ())
            first = name not in legend
            legend.add(name)
            drawn.add_trace(
                Scatter(x=x, y=y, name=name, mode="lines+markers", showlegend=first, **look), row=1, col=col
            )
        corners = [each.flops for each in series.hull]
        ring = {"size": 9, "color": "rgba(0,0,0,0)", "line": {"color": "black", "width": 1}}
        look = {"name": "hull", "legendgroup": "hull", "marker": ring, "showlegend": col == 1}
        losses = [each.loss for each in series.hull]
        drawn.add_trace(Scatter(x=corners, y=losses, mode="markers", **look), row=1, col=col)
        if series.compute:
            x = np.geomspace(corners[0], corners[-1], 50)
            law = {"line": {"color": "black", "dash": "dash"}, "name": "law", "legendgroup": "law"}
            y = series.compute.at({"C": x})
            drawn.add_trace(Scatter(x=x, y=y, mode="lines", showlegend=col == 1, **law), row=1, col=col)
            _residuals(drawn, corners, series.compute, {"marker": {"color": "black"}}, col)
    drawn.update_xaxes(type="log", exponentformat="power", dtick=1)
    drawn.update_xaxes(title_text="FLOP", row=2)
    drawn.update_yaxes(type="log", row=1)
    drawn.update_yaxes(title_text="FVU", row=1, col=1)
    drawn.update_yaxes(title_text="residual, %", row=2, col=1)
    return styled(drawn, height=520, top=90)


def metric_figure(laws: Laws) -> "Figure":
    """Every metric over n, a line per k, and over k, a line per n; dotted what it is first compared with."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    measured = [(p, laws.metrics[p.name][p.site].numbers) for p in laws.points if p.name in laws.metrics]
    names = [name for name in METRICS if any(name in numbers for _, numbers in measured)] or ["fvu"]
    titles = ["over n, a line per k", "over k, a line per n"] + [""] * (2 * len(names) - 2)
    space: dict[str, Any] = {"horizontal_spacing": 0.09, "vertical_spacing": 0.4 / (len(names) + 1)}
    drawn = make_subplots(rows=len(names), cols=2, subplot_titles=titles, **space)
    legend: set[str] = set()
    for row, metric in enumerate(names, 1):
        has = [(p, numbers[metric]) for p, numbers in measured if metric in numbers]
        for col, (axis, other) in enumerate((("n_latents", "k"), ("k", "n_latents")), 1):
            for rank, group in enumerate(sorted({(str(p.site), p.kind, getattr(p, other)) for p, _ in has})):
                members = [(p, m) for p, m in has if (str(p.site), p.kind, getattr(p, other)) == group]
                members.sort(key=lambda each: getattr(each[0], axis))
                x, values = [getattr(p, axis) for p, _ in members], [m.value for _, m in members]
                name = f"{group[0]} {group[1]} {other[0]}={group[2]:,}"
                line = {"color": COLOURS[(rank + 4 * (col - 1)) % len(COLOURS)]}
                look = {"mode": "lines+markers", "name": name, "legendgroup": name, "showlegend": name not in legend}
                legend.add(name)
                y, bars = [v.value for v in values], error_bars(values)
                drawn.add_trace(Scatter(x=x, y=y, error_y=bars, line=line, **look), row=row, col=col)
                control = [next(iter(m.controls.values())).value if m.controls else None for _, m in members]
                dotted = {"mode": "lines", "line": line | {"dash": "dot", "width": 1}, "showlegend": False}
                drawn.add_trace(Scatter(x=x, y=control, hoverinfo="skip", **dotted), row=row, col=col)
        drawn.update_yaxes(title_text=METRICS[metric].title, row=row, col=1)
    drawn.update_xaxes(type="log", dtick=math.log10(2), tickformat=",")
    height = 220 * len(names) + 120
    return styled(drawn, height=height, top=100).update_layout(legend_y=1 + 35 / height)


def read_figure(laws: Laws) -> "Figure":
    """FVU of the largest dictionary of each site, kind and k, read at other k; dotted with a threshold in its place."""
    from plotly.graph_objects import Figure, Scatter

    drawn = Figure()
    for rank, series in enumerate(laws.series):
        largest = _members(series, laws.points)[-1]
        curve = laws.metrics[largest.name][largest.site].curve
        x, line = [each.k for each in curve], {"color": COLOURS[rank % len(COLOURS)]}
        sizes = [10 if each.k == series.k else 5 for each in curve]
        look = {"name": f"{series.name} n={largest.n_latents:,}", "mode": "lines+markers", "marker": {"size": sizes}}
        drawn.add_trace(Scatter(x=x, y=[each.fvu.value for each in curve], line=line, **look))
        y = [each.threshold_fvu.value for each in curve]
        dotted = {"mode": "lines", "line": line | {"dash": "dot"}, "showlegend": False}
        drawn.add_trace(Scatter(x=x, y=y, hoverinfo="skip", **dotted))
    drawn.update_xaxes(title_text="active latents it is read with", type="log", dtick=math.log10(2), tickformat=",")
    drawn.update_yaxes(title_text="FVU", type="log")
    return styled(drawn, height=400)
