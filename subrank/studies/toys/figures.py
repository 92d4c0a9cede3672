"""Pictures of the toy models: the lecture's, dimensions per feature, and whether dictionaries find the features."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from editing.plotting import AMBER, BLUE, GREY, error_bars, styled
from subrank.studies.toys.dictionaries import FOUND, Recovery
from subrank.studies.toys.models import LINEAR
from subrank.studies.toys.solution import Solution

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHAPES = {1: "alone", 1 / 2: "antipodal pair", 2 / 5: "pentagon"}
"""Dimensions that a feature has in a shape."""


def models_figure(solutions: Sequence[Solution]) -> "Figure":
    """A column for each model: W^T W, below it |W_i| coloured by interference, below that the bias."""
    from plotly.graph_objects import Bar, Heatmap
    from plotly.subplots import make_subplots

    n_columns = len(solutions)
    figure = make_subplots(
        rows=3,
        cols=n_columns,
        row_heights=[0.46, 0.3, 0.24],
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=min(0.012, 0.2 / n_columns),
        vertical_spacing=0.04,
        column_titles=[_title(solution) for solution in solutions],
    )
    for column, solution in enumerate(solutions, 1):
        features = list(range(1, len(solution.norms) + 1))
        hover = "features %{x} and %{y}: %{z:.2f}<extra></extra>"
        products = (solution.W.T @ solution.W).tolist()
        length = {"color": solution.interference, "coloraxis": "coloraxis2"}
        shared = [f"interference {value:.2f}" for value in solution.interference]
        words = "feature %{x}: length %{y:.2f}, %{customdata}<extra></extra>"
        bias = "feature %{x}: bias %{y:.2f}<extra></extra>"
        traces = (
            Heatmap(z=products, x=features, y=features, coloraxis="coloraxis", hovertemplate=hover),
            Bar(x=features, y=solution.norms, marker=length, customdata=shared, hovertemplate=words),
            Bar(x=features, y=solution.bias, marker={"color": GREY}, hovertemplate=bias),
        )
        for row, trace in enumerate(traces, 1):
            figure.add_trace(trace, row=row, col=column)
    styled(figure, height=470, top=60, size=12)
    figure.update_layout(
        showlegend=False,
        bargap=0.1,
        coloraxis=_colours("RdBu", -1, 1, "WᵀW", 0.79),
        coloraxis2=_colours("Viridis", 0, 1, "inter-<br>ference", 0.36),
    )
    figure.update_yaxes(autorange="reversed", row=1)
    figure.update_yaxes(title_text="feature", row=1, col=1)
    figure.update_yaxes(title_text="length |Wᵢ|", row=2, col=1)
    figure.update_yaxes(title_text="bias bᵢ", row=3, col=1)
    figure.update_xaxes(title_text="feature", title_standoff=4, row=3)
    return figure


def _title(solution: Solution) -> str:
    if solution.model.kind == LINEAR:
        return "linear<br>at all 1−S"
    return f"ReLU<br>1−S = {solution.model.density:g}"


def _colours(scale: str, low: float, high: float, title: str, place: float) -> dict:
    bar = {"title": {"text": title}, "len": 0.42, "y": place, "thickness": 10, "tickvals": [low, high]}
    return {"colorscale": scale, "cmin": low, "cmax": high, "colorbar": bar}


def dimensions_figure(solutions: Sequence[Solution]) -> "Figure":
    """D_i of every represented feature, and m / |W|_F^2, against 1 / (1 - S)."""
    from plotly.graph_objects import Figure, Scatter

    points = [(1 / s.model.density, i + 1, s.dimensions[i]) for s in solutions for i in s.represented]
    figure = Figure()
    figure.add_trace(
        Scatter(
            x=[x for x, _, _ in points],
            y=[value for _, _, value in points],
            customdata=[feature for _, feature, _ in points],
            mode="markers",
            name="Dᵢ of a represented feature",
            marker={"color": BLUE, "size": 9, "opacity": 0.5},
            hovertemplate="feature %{customdata}: %{y:.2f} dimensions<extra></extra>",
        )
    )
    figure.add_trace(
        Scatter(
            x=[1 / s.model.density for s in solutions],
            y=[s.per_feature for s in solutions],
            mode="lines+markers",
            name="m / |W|²: all of them together",
            line={"color": AMBER, "width": 3},
            hovertemplate="%{y:.2f} dimensions per feature<extra></extra>",
        )
    )
    for value, shape in SHAPES.items():
        figure.add_hline(y=value, line={"dash": "dot", "color": GREY, "width": 1}, annotation_text=shape)
    styled(figure, height=380)
    figure.update_xaxes(title_text="1 / (1 − S): sparser to the right", type="log")
    figure.update_yaxes(title_text="dimensions per feature", range=[0, 1.15])
    return figure


def recovery_figure(recoveries: Sequence[Recovery]) -> "Figure":
    """Mean largest cosine of the represented features with a dictionary's directions, and of chance."""
    from plotly.graph_objects import Figure, Scatter

    figure, x = Figure(), [1 / each.density for each in recoveries]
    rows = (
        ("dictionaries trained on h", [each.cosine for each in recoveries], BLUE),
        ("random dictionaries", [each.chance for each in recoveries], GREY),
    )
    for name, values, colour in rows:
        figure.add_trace(
            Scatter(
                x=x,
                y=[value.value for value in values],
                error_y=error_bars(values, thickness=1.5),
                mode="lines+markers",
                name=name,
                line={"color": colour, "width": 3},
                hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>",
            )
        )
    figure.add_hline(y=FOUND, line={"dash": "dot", "color": GREY, "width": 1}, annotation_text="found")
    styled(figure, height=340)
    figure.update_xaxes(title_text="1 / (1 − S): sparser to the right", type="log")
    figure.update_yaxes(title_text="mean largest cosine", range=[None, 1.02])
    return figure
