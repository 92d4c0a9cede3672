"""How good a circuit is, on its page: all numbers, and nothing unescaped."""

import math
from dataclasses import replace

import pytest
from planted_circuit import TRUE, Planted

from circuits.scoring.circuit_runs import Errors, features_in
from circuits.scoring.controls import Controls, Faithfulness, Overlap, Stability
from circuits.scoring.edge_check import EdgeCheck, ScaledCause
from circuits.scoring.faithfulness import CircuitScore, score_circuit
from circuits.scoring.node_curve import NodeCurve, node_curve
from sae_core.estimate import Estimate
from sae_core.sites import FeatureId, Site
from subrank.pages.circuit_figure import scoring_figure
from subrank.pages.circuit_page import scoring_section

NASTY = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.fixture(scope="module")
def planted_score(planted) -> CircuitScore:
    return score_circuit(planted.scale(), TRUE)


def nasty_results():
    half = Estimate(0.5, 0.4, math.nan)
    curve = NodeCurve(NASTY, NASTY, (), half)
    controls = Controls(NASTY, 3, Faithfulness(half, half), (Faithfulness(half, half),), Faithfulness(half, half))
    moves = EdgeCheck((ScaledCause(FeatureId(Site(0), 1), FeatureId(Site(1), 1), 0.0, -0.5, 0.5),), 0)
    return curve, controls, Stability((0, 1), (3, 3), (Overlap(0.5, 0.7),), 2, 4), moves


def test_the_section_shows_the_numbers_and_nothing_unescaped(planted, planted_score):
    curve, controls, stable, moves = nasty_results()
    named = replace(planted_score, target=NASTY, ablation=NASTY)
    drawn = node_curve(planted.scale(), features_in(TRUE), NASTY)
    drawn = replace(drawn, ablation=NASTY)
    page = scoring_section([named], [controls], [drawn, curve], stable, moves)
    assert NASTY not in page and "&lt;script&gt;" in page
    text = page.replace("<small>", " ")
    for errors in Errors:
        assert str(named.ways[errors].faithfulness) in text and str(named.ways[errors].completeness) in text
    assert "plotly-graph-div" in page and "2 of 4 edges found always" in page
    assert page.count("<tr") > 8 + len(named.members)
    assert "plotly-graph-div" not in scoring_section([named])


@pytest.mark.parametrize("minimal", [(Errors.ABLATED,), ()])
def test_minimality_that_was_not_measured_is_left_out(planted, planted_score, minimal):
    score = score_circuit(planted.scale(), TRUE, minimal=minimal)
    assert score.ways[Errors.ABLATED].faithfulness == planted_score.ways[Errors.ABLATED].faithfulness
    lines = [line for line in score.lines() if line.startswith("minimality")]
    assert len(lines) == len(minimal) and len(planted_score.lines()) == len(score.lines()) + 2 - len(minimal)
    page, whole = scoring_section([score]), scoring_section([planted_score])
    assert page.count("<tr") == whole.count("<tr") - (0 if minimal else len(score.members) + 1)


def test_the_figure_has_all_three_ways_and_the_random_circuits(planted):
    curve = node_curve(planted.scale(), features_in(TRUE), "by layer")
    control = Faithfulness(Estimate(0.1, 0.0, 0.2), Estimate(0.3, 0.2, 0.4))
    figure = scoring_figure([curve], [Controls(curve.ablation, 8, control, (control, control), control)])
    assert [trace.name for trace in figure.data] == [
        "by layer, errors ablated",
        "by layer, errors kept",
        "random circuits, errors ablated",
    ]
    assert list(figure.data[0].y) == [p.ablated.value for p in curve.points]
    assert list(figure.data[2].x) == [8, 8] and figure.layout.shapes[0].y0 == curve.ceiling.value
