"""A removal as a page and a figure: what is shown is what was measured, and it is escaped."""

from dataclasses import replace

import pytest

from editing.removal.comparisons import Frontier, FrontierPoint, LeaceComparison
from editing.removal.evaluation import EVERYWHERE, Method, Removal
from editing.removal.figure import LEAST, removal_figure
from editing.removal.result import RemovalResult
from editing.tasks.score import TaskScore
from sae_core.estimate import Estimate
from subrank.pages.removal_page import removal_section

HERE, THERE, NASTY = "resid_post.1", "resid_post.2", "<script>alert(1)</script>"
OWN = TaskScore(Estimate(0.99, 0.99, 0.99), 0.98, Estimate(5.0, 5.0, 5.0), 64)


def removal(method: Method, area: float, damage: float, site: str = HERE, **fields) -> Removal:
    left, cost = Estimate(area, area - 0.04, area + 0.03), Estimate(damage, damage / 2, 2 * damage)
    return Removal(method, site, left, Estimate(0.6), 1.0, Estimate(0.5), cost, 1.0, **fields)


def frontier(method: Method, site: str = HERE) -> Frontier:
    rows = ((0.0, 1.0, 0.0), (0.5, 0.8, 0.01), (1.0, 0.5, 0.04))
    within = Estimate(0.6, 0.5, 0.7)
    points = (FrontierPoint(s, Estimate(a, a - 0.1, a), within, Estimate(d, d / 2, 2 * d)) for s, a, d in rows)
    return Frontier(method, site, tuple(points))


@pytest.fixture
def result() -> RemovalResult:
    tested = {"her or his": Estimate(0.91), NASTY: Estimate(0.72)}
    able = {"her or his": Estimate(1.0), NASTY: Estimate(0.99)}
    probe = {"strength": 1.35, "transfer": tested, "probe": Estimate(0.83)}
    return RemovalResult(
        own=OWN,
        own_auroc=0.998,
        site=HERE,
        methods=(
            removal(Method.FEATURES, 0.5, 0.01, features=("1_2", "1_7"), **probe),
            removal(Method.LEACE, 0.52, 0.3),
            removal(Method.LEACE_TUNED, 0.7, 0.02, strength=0.4),
            removal(Method.RANDOM_FEATURES, 0.5, 0.2, draws=(0.05, 0.95)),
        ),
        elsewhere=(removal(Method.FEATURES, 0.77, 0.11, THERE), removal(Method.LEACE, 0.66, 0.22, THERE)),
        best=Method.FEATURES,
        unedited=removal(Method.NONE, 0.998, 0.0, strength=0.0, transfer=able, probe=Estimate(0.97)),
        everywhere=(removal(Method.FEATURES, 0.51, 0.015, EVERYWHERE), removal(Method.LEACE, 0.8, 0.4, EVERYWHERE)),
        frontiers=(frontier(Method.FEATURES), frontier(Method.LEACE), frontier(Method.FEATURES, EVERYWHERE)),
        comparisons=(LeaceComparison(HERE, True, True, Estimate(0.29, 0.2, 0.4)),),
        answers=(NASTY, "he"),
        example=NASTY,
        notes=(f"transfer to {NASTY}: measured",),
        resampled="names and templates, crossed",
    )


def test_the_page_shows_every_method_what_was_resampled_and_the_notes(result):
    page = removal_section(result)
    assert "<script>alert" not in page and page.count("&lt;script&gt;") >= 4
    for shown in ("0.91 / 0.72", "1.00 / 0.99", "0.83 / –", "1_2, 1_7", "with strength 1.35", "0.77 / 0.1100"):
        assert shown in page
    assert "bootstrap over names and templates, crossed" in page and "forms of the task: her or his" in page
    assert "transfer to &lt;script&gt;" in page.lower() and "mean difference" not in page
    assert page.index("no edit") < page.index("<td>features") < page.index("LEACE, tuned")
    assert "0.50<small>[0.46, 0.53]\n0.05, 0.95</small>" in page  # the draws beside their mean
    marked = page[page.index('<tr class="best">') :]
    assert marked.index("<td>features") < marked.index("</tr>")


def test_random_draws_that_average_to_chance_are_not_gone_on_the_page(result):
    row = next(row for row in removal_section(result).split("<tr") if "random features" in row)
    assert row.split("</td>")[-2].endswith("no")


def test_what_was_left_out_is_not_shown(result):
    without = replace(result, comparisons=(), methods=result.methods[:1], frontiers=(), unedited=None)
    page = removal_section(replace(without, notes=("no concept",), elsewhere=(), everywhere=()))
    assert "No concept." in page and "LEACE causes" not in page and "no edit" not in page
    assert "least strength that removes" not in page


def test_the_figure_draws_curves_where_there_are_and_points_elsewhere(result):
    figure = removal_figure(result)
    drawn = [(trace.name, trace.xaxis, len(trace.x), trace.mode) for trace in figure.data]
    assert drawn == [
        ("features", "x", 3, "lines+markers"),
        ("LEACE", "x", 3, "lines+markers"),
        ("random features", "x", 1, "markers"),
        ("features", "x2", 3, "lines+markers"),
        ("LEACE", "x2", 1, "markers"),
    ]
    curve, point = figure.data[0], figure.data[2]
    assert [*curve.x] == [LEAST, 0.01, 0.04] and [*curve.y] == [1.0, 0.8, 0.5]
    assert [*curve.marker.size] == [5, 5, 11]  # the method's own strength is the large one
    assert [*map(list, curve.customdata)][1] == [0.5, 0.6, 0.5, 0.7] and "within sentences" in curve.hovertemplate
    assert [*curve.error_y.arrayminus] == pytest.approx([0.1] * 3) and [*point.x] == [0.2]
    assert [trace.showlegend for trace in figure.data] == [True, True, True, False, False]
    assert {note.text for note in figure.layout.annotations} == {HERE, EVERYWHERE}
    assert figure.layout.xaxis.type == figure.layout.xaxis2.type == "log" and NASTY in figure.layout.yaxis.title.text
