"""The page of `subrank circuit`: the drawing with its strongest edges, and how good the circuit is."""

from collections.abc import Sequence

from markupsafe import Markup

from circuits.evaluation import CircuitEvaluation
from circuits.features.verification import Claim
from circuits.graph import ErrorTerm, FeatureGraph, Node
from circuits.scoring.circuit_runs import Errors
from circuits.scoring.controls import Controls, Stability
from circuits.scoring.edge_check import EdgeCheck
from circuits.scoring.faithfulness import CircuitScore
from circuits.scoring.node_curve import NodeCurve
from subrank.pages.circuit_figure import scoring_figure
from subrank.pages.page import MISSING, Cell, Table, drawing, estimate_cell, figure, render

N_STRONGEST = 12
"""Edges that the table shows."""


def circuit_section(graph: FeatureGraph, whole: str | None, story: str | None = None) -> Markup:
    """The story and the whole circuit, each as SVG where it could be drawn, and its strongest edges."""
    return render(
        "circuit.html",
        target=str(graph.target),
        facts=graph.facts,
        story=drawing(story) if story else None,
        picture=drawing(whole) if whole else None,
        edges=edges_table(graph, N_STRONGEST),
    )


def edges_table(graph: FeatureGraph, n: int) -> Table:
    """The `n` strongest edges, with standard errors over examples and what random directions do."""
    nodes = {node.id: node for node in graph.nodes}
    rows = [
        (
            node_cell(nodes[edge.cause]),
            node_cell(nodes[edge.target]),
            f"{edge.effect:+.3f} ± {edge.error:.3f}",
            MISSING if edge.null is None else f"{edge.null:.3f}",
            f"{edge.n_active} of {edge.n_examples}",
        )
        for edge in sorted(graph.edges, key=lambda edge: -abs(edge.effect))[:n]
    ]
    return Table(("cause", "target", "effect", "random direction", "active on"), rows)


def node_cell(node: Node) -> Cell:
    """A node in a table: its id, and below it its name or label."""
    return Cell(str(node.id), node.title or ("error term" if isinstance(node.id, ErrorTerm) else ""))


def claims_section(claims: Sequence[Claim]) -> Markup:
    """What each feature says of the text."""
    rows = [(str(claim.feature), claim.predicate, f"{claim.f1:.2f}", f"{claim.control:.2f}") for claim in claims]
    return render("claims.html", claims=Table(("feature", "is nearest to", "F1", "control"), rows))


def evaluation_section(evaluation: CircuitEvaluation) -> Markup:
    """All that is known of how good a circuit is."""
    parts = (evaluation.scores, evaluation.controls, evaluation.curves, evaluation.stability, evaluation.moves)
    return render("reach.html", lines=[reached.line() for reached in evaluation.reached]) + scoring_section(*parts)


def scoring_section(
    scores: Sequence[CircuitScore],
    controls: Sequence[Controls] = (),
    curves: Sequence[NodeCurve] = (),
    stability: Stability | None = None,
    moves: EdgeCheck | None = None,
) -> Markup:
    """How good the circuit is: one column per ablation, the curve, and the checks that were made."""
    first = scores[0]
    return render(
        "scores.html",
        n_members=len(first.members),
        target=first.target,
        n_prompts=first.n_prompts,
        covered=", ".join(first.covered),
        scores=_scores_table(scores),
        controls=[(_controls_table(compared), compared.lines()[0]) for compared in controls],
        plot=figure(scoring_figure(curves, controls)) if curves else None,
        curves=[line for curve in curves for line in curve.lines()],
        members=[(score.ablation, _members_table(score)) for score in scores if score.ways[Errors.ABLATED].drops],
        stability=stability.lines() if stability else [],
        moves=_moves_table(moves) if moves else None,
    )


def _scores_table(scores: Sequence[CircuitScore]) -> Table:
    """A row to a number, a column to an ablation."""
    rows: list[tuple[str | Cell, ...]] = [
        ("target: whole model / everything ablated", *(f"{s.m_whole:.3f} / {s.m_nothing:.3f}" for s in scores)),
        *(
            (f"{name}, errors {errors}", *(estimate_cell(getattr(s.ways[errors], name)) for s in scores))
            for name in ("faithfulness", "completeness")
            for errors in Errors
        ),
        ("ceiling: all latents, errors ablated", *(estimate_cell(s.ceiling) for s in scores)),
        ("faithfulness over ceiling, errors ablated", *(estimate_cell(s.of_ceiling) for s in scores)),
        ("error terms alone", *(estimate_cell(s.errors_alone) for s in scores)),
        *(
            (f"minimality: mean drop / least, errors {errors}", *(_minimality(s, errors) for s in scores))
            for errors in Errors
        ),
    ]
    return Table(("outside the circuit", *(s.ablation for s in scores)), rows)


def _minimality(score: CircuitScore, errors: Errors) -> Cell:
    way = score.ways[errors]
    if way.least_missed is None:
        return Cell(MISSING)
    return Cell(f"{way.mean_drop:.4f} / {way.drops[way.least_missed].value:.4f}", str(way.least_missed))


def _controls_table(controls: Controls) -> Table:
    compared = {
        "the circuit": controls.circuit,
        f"best of {len(controls.random)} random circuits": controls.best_random,
        "first-order circuit": controls.first_order,
    }
    rows = [(name, estimate_cell(control.ablated), estimate_cell(control.kept)) for name, control in compared.items()]
    return Table((controls.ablation, "faithfulness, errors ablated", "errors kept"), rows)


def _members_table(score: CircuitScore) -> Table:
    drops = [score.ways[errors].drops for errors in Errors]  # not measured everywhere in circuits of many members
    ranked = sorted(drops[0], key=lambda member: -drops[0][member].value)
    rows = [
        (str(member), *(estimate_cell(each[member]) if member in each else Cell(MISSING) for each in drops))
        for member in ranked
    ]
    return Table(("member", "errors ablated", "errors kept"), rows)


def _moves_table(moves: EdgeCheck) -> Table:
    rows = [
        (
            f"× {agreement.factor:g}",
            f"{agreement.correlation:.3f}",
            f"{agreement.same_sign:.0%} of {agreement.n_edges}",
            f"{agreement.edges_move:.4f}",
            Cell(f"{agreement.controls_move:.4f}", f"{agreement.n_controls} pairs"),
        )
        for agreement in moves.agreement()
    ]
    head = ("cause", "correlation with the edges", "same sign", "mean |change|", "mean |change| without an edge")
    return Table(head, rows)
