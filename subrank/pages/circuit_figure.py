"""Faithfulness of a circuit against its number of nodes, as a figure."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from circuits.scoring.circuit_runs import Errors
from circuits.scoring.controls import Controls
from circuits.scoring.node_curve import NodeCurve
from editing.plotting import AMBER, BLUE, GREEN, GREY, error_bars, styled

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

_COLOURS = {Errors.ABLATED: BLUE, Errors.KEPT: AMBER}
_DASHES = ("solid", "dash", "dot", "dashdot")


def scoring_figure(curves: Sequence[NodeCurve], controls: Sequence[Controls] = ()) -> "Figure":
    """Faithfulness against number of nodes, a panel to an ablation: errors ablated, errors kept, and the ceiling.

    The random circuits of `controls` are points above their number of nodes.
    """
    from plotly.subplots import make_subplots

    ablations = list(dict.fromkeys(curve.ablation for curve in curves))
    orders = list(dict.fromkeys(curve.order for curve in curves))
    figure = make_subplots(
        cols=max(1, len(ablations)), shared_yaxes=True, subplot_titles=[escape(a) for a in ablations]
    )
    for column, ablation in enumerate(ablations, 1):
        place: dict[str, Any] = {"row": 1, "col": column}
        first = column == 1
        shown = [curve for curve in curves if curve.ablation == ablation]
        for curve in shown:
            dash = _DASHES[orders.index(curve.order) % len(_DASHES)]
            for errors in Errors:
                figure.add_trace(_line(curve, errors, dash, first=first), **place)
        ceiling = {"line": {"dash": "dot", "color": GREY, "width": 1.5}, "annotation_text": "ceiling"}
        figure.add_hline(y=shown[0].ceiling.value, **place, **ceiling)
        for compared in controls:
            if compared.ablation == ablation:
                figure.add_trace(_points(compared, first=first), **place)
        figure.update_xaxes(title_text="nodes", rangemode="tozero", **place)
    figure.update_yaxes(title_text="faithfulness", row=1, col=1)
    return styled(figure, height=460, top=90)


def _line(curve: NodeCurve, errors: Errors, dash: str, *, first: bool) -> "Scatter":
    from plotly.graph_objects import Scatter

    shares = [point.ablated if errors is Errors.ABLATED else point.kept for point in curve.points]
    name = f"{escape(curve.order)}, errors {errors}"
    return Scatter(
        x=[point.n_nodes for point in curve.points],
        y=[share.value for share in shares],
        name=name,
        legendgroup=name,
        showlegend=first,
        mode="lines+markers",
        line={"color": _COLOURS[errors], "width": 2.2, "dash": dash},
        marker={"size": 5},
        error_y=error_bars(shares),
        hovertemplate="%{x} nodes: %{y:.3f}",
    )


def _points(controls: Controls, *, first: bool) -> "Scatter":
    """Random circuits, errors ablated, above their size."""
    from plotly.graph_objects import Scatter

    return Scatter(
        x=[controls.n_nodes] * len(controls.random),
        y=[control.ablated.value for control in controls.random],
        name="random circuits, errors ablated",
        legendgroup="random",
        showlegend=first,
        mode="markers",
        marker={"size": 7, "color": GREEN, "symbol": "line-ew-open"},
        hovertemplate="random circuit of %{x} nodes: %{y:.3f}",
    )
