"""The scores of a circuit as a figure and as a section of a page."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from circuits.evaluation import CircuitEvaluation
from circuits.scoring.circuit_runs import Errors
from circuits.scoring.controls import Control, Controls, Stability
from circuits.scoring.edge_check import Moves
from circuits.scoring.faithfulness import NodeCurve, Score, Share
from subrank.pages.page import plot, table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

_COLOURS = {Errors.ABLATED: "#1b4f9c", Errors.KEPT: "#d97706"}
_DASHES = ("solid", "dash", "dot", "dashdot")
_NOTE = (
    "m is the mean of the target over prompts that discovery has not seen. Faithfulness: (m(C) - m(0)) / "
    "(m(M) - m(0)), with C the circuit alone, M the whole model and 0 everything ablated, error terms included. "
    "Completeness: the same of what the circuit leaves out, near 0 if nothing matters there; it holds the error terms "
    "where the circuit does not. Minimality: what is lost with one member. Ceiling: all latents kept, errors ablated. "
    "In brackets 95% intervals: bootstrap over prompts. Ablated things are set to the value that is named, at every "
    "covered site, from the lowest up; BOS keeps its activation. Random circuits have as many latents per site, of "
    "nearest density; the first-order circuit has those of largest attribution."
)


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
        own = [curve for curve in curves if curve.ablation == ablation]
        for curve in own:
            dash = _DASHES[orders.index(curve.order) % len(_DASHES)]
            for errors in Errors:
                figure.add_trace(_line(curve, errors, dash, first=column == 1), row=1, col=column)
        ceiling = {"line": {"dash": "dot", "color": "#6b7280", "width": 1.5}, "annotation_text": "ceiling"}
        figure.add_hline(y=own[0].ceiling.value, row=1, col=column, **ceiling)
        for found in controls:
            if found.ablation == ablation:
                figure.add_trace(_points(found, first=column == 1), row=1, col=column)
        figure.update_xaxes(title_text="nodes", rangemode="tozero", row=1, col=column)
    figure.update_yaxes(title_text="faithfulness", row=1, col=1)
    figure.update_layout(
        template="plotly_white",
        height=460,
        margin={"l": 70, "r": 20, "t": 90, "b": 60},
        font={"family": "Helvetica, Arial, sans-serif", "size": 13},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.1, "x": 0},
    )
    return figure


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
        error_y=_bars(shares),
        hovertemplate="%{x} nodes: %{y:.3f}",
    )


def _points(controls: Controls, *, first: bool) -> "Scatter":
    """Random circuits, errors ablated, above their size."""
    from plotly.graph_objects import Scatter

    return Scatter(
        x=[controls.n_nodes] * len(controls.random),
        y=[one.ablated.value for one in controls.random],
        name="random circuits, errors ablated",
        legendgroup="random",
        showlegend=first,
        mode="markers",
        marker={"size": 7, "color": "#10b981", "symbol": "line-ew-open"},
        hovertemplate="random circuit of %{x} nodes: %{y:.3f}",
    )


def _bars(shares: Sequence[Share]) -> dict:
    up = [max(0.0, share.high - share.value) for share in shares]
    down = [max(0.0, share.value - share.low) for share in shares]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 0.8, "width": 0}


def evaluation_section(evaluation: CircuitEvaluation) -> str:
    """All that is known of how good a circuit is, for its page."""
    far = "".join(f"<li>{escape(one.line())}</li>" for one in evaluation.reached)
    opening = f"<p>The more layers are left to the circuit alone, the less of the target it carries:</p><ul>{far}</ul>"
    parts = (evaluation.scores, evaluation.controls, evaluation.curves, evaluation.stability, evaluation.moves)
    return opening + scoring_section(*parts)


def scoring_section(
    scores: Sequence[Score],
    controls: Sequence[Controls] = (),
    curves: Sequence[NodeCurve] = (),
    stability: Stability | None = None,
    moves: Moves | None = None,
) -> str:
    """How good the circuit is, for a page: one column per ablation, the curve, and the checks that were made."""
    parts = [_opening(scores), '<div class="wide">', _scores_table(scores), "</div>"]
    if controls:
        parts.append("<p>Beside circuits of the same size:</p>" + "".join(map(_controls_table, controls)))
        parts += [f"<p>{escape(line)}.</p>" for found in controls for line in found.lines()[:1]]
    if curves:
        parts.append(plot(scoring_figure(curves, controls)))
    parts += [f"<p>{escape(line)}.</p>" for curve in curves for line in curve.lines()]
    for one in scores:
        title = f"What is lost with each member ({escape(one.ablation)})"
        parts.append(f"<details><summary>{title}</summary>{_drops_table(one)}</details>" if one.members else "")
    if stability is not None:
        parts += [f"<p>{escape(line[:1].upper() + line[1:])}.</p>" for line in stability.lines()]
    if moves is not None:
        parts.append(
            "<p>Intervene and check: one cause scaled, its targets read on other examples:</p>" + _moves_table(moves)
        )
    return "".join(parts) + f'<p class="note">{escape(_NOTE)}</p>'


def _opening(scores: Sequence[Score]) -> str:
    one = scores[0]
    return (
        f"<p>A circuit of <b>{len(one.members)}</b> nodes behind <b>{escape(one.target)}</b>, scored on "
        f"{one.n_prompts} prompts that discovery has not seen, at {escape(', '.join(one.covered))}.</p>"
    )


def _scores_table(scores: Sequence[Score]) -> str:
    """A row to a number, a column to an ablation."""
    rows: list[tuple[str, ...]] = [
        ("target: whole model / everything ablated", *(f"{s.m_whole:.3f} / {s.m_nothing:.3f}" for s in scores)),
        *(
            (f"{name}, errors {errors}", *(str(getattr(s.ways[errors], name)) for s in scores))
            for name in ("faithfulness", "completeness")
            for errors in Errors
        ),
        ("ceiling: all latents, errors ablated", *(str(s.ceiling) for s in scores)),
        ("faithfulness over ceiling, errors ablated", *(str(s.of_ceiling) for s in scores)),
        ("errors alone", *(str(s.errors_alone) for s in scores)),
        *(
            (f"minimality: mean drop / least, errors {errors}", *(_minimality(s, errors) for s in scores))
            for errors in Errors
        ),
    ]
    return table(("outside the circuit", *(s.ablation for s in scores)), rows)


def _minimality(score: Score, errors: Errors) -> str:
    way = score.ways[errors]
    return "–" if way.worst is None else f"{way.mean_drop:.4f} / {way.worst.drop.value:.4f} ({way.worst.member})"


def _controls_table(controls: Controls) -> str:
    def row(name: str, one: Control) -> tuple[str, ...]:
        return name, str(one.ablated), str(one.kept)

    rows = [
        row("the circuit", controls.circuit),
        row(f"best of {len(controls.random)} random circuits", controls.best_random),
        row("first-order circuit", controls.first_order),
    ]
    return table((controls.ablation, "faithfulness, errors ablated", "errors kept"), rows)


def _drops_table(score: Score) -> str:
    ablated, kept = (score.ways[errors].drops for errors in Errors)
    both = sorted(zip(ablated, kept, strict=True), key=lambda pair: -pair[0].drop.value)
    return table(
        ("member", "errors ablated", "errors kept"), ((str(a.member), str(a.drop), str(k.drop)) for a, k in both)
    )


def _moves_table(moves: Moves) -> str:
    rows = [
        (
            f"× {a.factor:g}",
            f"{a.correlation:.3f}",
            f"{a.same_sign:.0%} of {a.n_edges}",
            f"{a.edges_move:.4f}",
            f"{a.controls_move:.4f} ({a.n_controls} pairs)",
        )
        for a in moves.agreement()
    ]
    head = ("cause", "correlation with the edges", "same sign", "mean |change|", "mean |change| without an edge")
    return table(head, rows)
