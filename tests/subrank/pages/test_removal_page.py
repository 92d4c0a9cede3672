"""A removal as a page and a figure: what is shown is what was measured, and it is escaped."""

import re
from dataclasses import replace

import pytest
from removal_world import measured

from editing.removal.figure import LEAST, removal_figure
from editing.removal.measurement.comparisons import compared
from editing.removal.measurement.curve import SHARES, MeasuredCurve
from editing.removal.measurement.evaluation import EVERYWHERE, Method, Removal
from editing.removal.result import RemovalResult
from editing.tasks.score import TaskScore
from sae_core.estimate import Estimate
from subrank.pages.removal_page import removal_section
from subrank.settings import experiments

HERE, THERE, NASTY = "resid_post.1", "resid_post.2", "<script>alert(1)</script>"
OWN = TaskScore(Estimate(0.99, 0.99, 0.99), 0.98, Estimate(5.0, 5.0, 5.0), 64)


def removal(method: Method, area: float, damage: float, site: str = HERE, **fields) -> Removal:
    left, cost = Estimate(area, area - 0.04, area + 0.03), Estimate(damage, damage / 2, 2 * damage)
    return Removal(method, site, left, Estimate(0.6), 1.0, Estimate(0.5), cost, 1.0, **fields)


def curves(site: str, mean_difference: float) -> dict[Method, MeasuredCurve]:
    """Features, LEACE at four times their damage, and a mean difference that leaves this AUROC."""
    ends = {"site": site, "place": NASTY}
    return {
        Method.FEATURES: measured(Method.FEATURES, (0.0, 1.0, 0.0), (0.8, 0.5, 0.01), (1.6, 0.0, 0.04), site=site),
        Method.LEACE: measured(Method.LEACE, (0.0, 1.0, 0.0), (1.0, 0.5, 0.04), **ends),
        Method.MEANS: measured(Method.MEANS, (0.0, 1.0, 0.0), (1.0, mean_difference, 1e-9), **ends),
    }


@pytest.fixture
def result() -> RemovalResult:
    tested = {"her or his": Estimate(0.91), NASTY: Estimate(0.72)}
    able = {"her or his": Estimate(1.0), NASTY: Estimate(0.99)}
    probe = {"transfer": tested, "probe": Estimate(0.83), "strengths": (1.35, 0.4)}
    here, everywhere = curves(HERE, 0.8), curves(EVERYWHERE, 0.25)
    return RemovalResult(
        own=OWN,
        own_auroc=0.998,
        site=HERE,
        methods=(
            removal(Method.FEATURES, 0.5, 0.01, features=("1_2", "1_7"), strength=0.8, **probe),
            removal(Method.LEACE, 0.5, 0.04),
            removal(Method.MEANS, 0.8, 1e-9),
            removal(Method.RANDOM_FEATURES, 0.5, 0.2, draws=(0.05, 0.95)),
        ),
        elsewhere=(removal(Method.FEATURES, 0.77, 0.11, THERE), removal(Method.LEACE, 0.66, 0.22, THERE)),
        unedited=removal(Method.NONE, 1.0, 0.0, strength=0.0, transfer=able, probe=Estimate(0.97)),
        everywhere=(removal(Method.FEATURES, 0.5, 0.01, EVERYWHERE, strength=0.8),),
        curves=tuple(curve.curve for at in (here, everywhere) for curve in at.values()),
        comparisons=(*compared(here), *compared(everywhere)),
        answers=(NASTY, "he"),
        example=NASTY,
        notes=(f"transfer to {NASTY}: measured",),
        resampled="names and templates, crossed",
    )


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, without markup."""
    table = page[page.index(heading) :].partition("<tbody>")[2].partition("</tbody>")[0]
    cells = (row.split("<td>")[1:] for row in table.split("<tr")[1:])
    return [[" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in row] for row in cells]


def test_the_damage_each_method_needs_comes_first_with_its_interval_and_never(result):
    page = str(removal_section(result))
    features, leace, means = rows(page, "Damage to other text")
    assert features[0] == "features" and [cell.split()[0] for cell in features[2:]] == ["0.0025", "0.0064", "0.0081"]
    assert leace[1] == "&lt;script&gt;alert(1)&lt;/script&gt;" and leace[3].split()[0] == "0.026"
    assert features[3] == "0.0064 [0.0064, 0.0064]" and means[2:] == ["never", "never", "never"]
    marked = page[page.index('<tr class="best">') :]
    assert marked.index("<td>features") < marked.index("</tr>") and page.count('class="best"') == 2
    assert page.index("Damage to other text") < page.index("site by site") < page.index("at the strength that was")


def test_a_share_that_only_some_resamples_reach_is_said_so(result):
    features = result.curves[0]
    needed = tuple(replace(each, high=None, reached=0.9) for each in features.needed)
    page = removal_section(replace(result, curves=(replace(features, needed=needed), *result.curves[1:])))
    assert rows(page, "Damage to other text")[0][3] == "0.0064 [0.0064, never] reached in 90%"


def test_features_stand_beside_leace_and_the_mean_difference_site_by_site(result):
    here, everywhere = rows(removal_section(result), "site by site")
    assert here[0] == HERE and here[1].startswith("0.0064") and here[2].endswith("&lt;/script&gt;")
    assert here[3] == "4 clearly less in 100%" and here[4].startswith("never") and here[5] == "– clearly less in 100%"
    assert everywhere[0] == EVERYWHERE and everywhere[5].endswith("not less in 0%")  # control: the rival does less


def test_the_page_shows_every_method_what_was_resampled_and_the_notes(result):
    page = str(removal_section(result))
    assert "<script>alert" not in page and page.count("&lt;script&gt;") >= 4
    for shown in (
        "0.91 / 0.72",
        "1.00 / 0.99",
        "0.83 / –",
        "1_2 (1.35), 1_7 (0.40); all of them times 0.8",
        "0.54 / 0.11",
    ):
        assert shown in page
    assert "bootstrap over names and templates, crossed" in page and "task: her or his" in page
    assert "transfer to &lt;script&gt;" in page.lower() and "0.50<small>[0.46, 0.53]\n0.05, 0.95</small>" in page
    left = {row[0]: row[2].split()[0] for row in rows(page, "at the strength that was")}
    assert left == {"no edit": "1.00", "features": "0.00", "LEACE": "0.00", "mean difference": "0.60"} | {
        "random features": "0.90"  # draws that average to chance leave nearly everything
    }


def test_a_damage_that_the_text_could_not_show_is_said_so(result):
    """Control: where some token of the text is reached, nothing is said."""
    rare = replace(result, elsewhere=(removal(Method.FEATURES, 0.5, 0.0, THERE),))
    assert not result.unseen() and "is not known" not in result.verdict()
    assert rare.unseen() == (THERE,) and f"At {THERE} the features are active nowhere in the text" in rare.verdict()


def test_what_was_left_out_is_not_shown(result):
    without = replace(result, comparisons=(), methods=result.methods[:1], curves=result.curves[:1], elsewhere=())
    page = removal_section(replace(without, notes=("no concept",), everywhere=()))
    assert "No concept." in page and "site by site" not in page and "<td>LEACE" not in page and "at once" not in page


def test_the_figure_draws_a_curve_per_method_and_points_for_random_edits(result):
    figure = removal_figure(result)
    drawn = [(trace.name, trace.xaxis, len(trace.x), trace.mode, trace.showlegend) for trace in figure.data]
    assert drawn == [
        ("features", "x", 3, "lines+markers", True),
        ("LEACE", "x", 2, "lines+markers", True),
        ("mean difference", "x", 2, "lines+markers", True),
        ("random features", "x", 1, "markers", True),
        ("features", "x2", 3, "lines+markers", False),
    ]
    curve, point = figure.data[0], figure.data[3]
    assert [*curve.x] == pytest.approx([LEAST, 0.01, 0.04]) and [*curve.y] == pytest.approx([1.0, 0.0, 1.0])
    assert [*curve.marker.size] == [4, 12, 4]  # the chosen strength is the large one
    assert "within sentences" in curve.hovertext[1] and [*point.y] == pytest.approx([0.9])
    assert {HERE, EVERYWHERE} < {note.text for note in figure.layout.annotations}
    heights = [line.y0 for line in figure.layout.shapes]
    assert heights == pytest.approx(2 * [1 - share for share in SHARES])
    assert figure.layout.xaxis.type == figure.layout.xaxis2.type == "log" and NASTY in figure.layout.yaxis.title.text


def test_a_curve_touches_zero_where_the_answers_turn_round_between_two_strengths(result):
    """From 0.3 above chance to 0.1 below it, three quarters of the way, also in the root of the damage."""
    through = measured(Method.FEATURES, (0.0, 1.0, 0.0), (1.0, 0.8, 0.01), (2.0, 0.4, 0.09)).curve
    trace = removal_figure(replace(result, curves=(through,), everywhere=())).data[0]
    assert [*trace.y] == pytest.approx([1.0, 0.6, 0.0, 0.2]) and [*trace.marker.size] == [4, 12, 0, 4]
    assert trace.x[2] == pytest.approx((0.1 + 0.75 * 0.2) ** 2)


def test_the_shares_of_the_settings_are_those_of_the_curves():
    assert experiments.SHARES == SHARES
