"""The pictures of a result, and the result's JSON."""

import math

from editing.ioi.curve import Curve, PatchingPoint
from editing.ioi.curve_comparison import CurveComparison
from editing.ioi.figure import ioi_figure, selection_figure
from editing.ioi.result import IOIResult
from editing.tasks.ioi import Corruption
from editing.tasks.score import TaskScore
from sae_core.codec import from_plain
from sae_core.estimate import Estimate

NUMBER = Estimate(0.5, 0.25, 1.0)


def result(recovered: Estimate = NUMBER) -> IOIResult:
    """Two sets and PCA, each with three points; every method's features are numbered alike."""
    curves = tuple(
        Curve(name, tuple(PatchingPoint(n, NUMBER, recovered, NUMBER, NUMBER) for n in (0, 1, 8)), order, 3, "greedy")
        for name, order in (("small", ("3_7", "3_1")), ("large", ("3_7",)), ("PCA", ("PCA 0", "PCA 1")))
    )
    comparison = CurveComparison("small", "PCA", (0, 1), (NUMBER, NUMBER), (0.5,), (NUMBER,))
    floor = {"nothing": 1.0, "all_latents": 0.1, "all_latents_and_error": 0.0}
    return IOIResult(
        corruption=Corruption.SWAP,
        own=TaskScore(NUMBER, 1.0, NUMBER, 16),
        site="resid_post.3",
        site_kl={"resid_post.3": 0.5},
        curves=curves,
        floors={"small": floor, "large": floor},
        shared=("templates",),
        n_selection=8,
        n_test=16,
        comparisons=(comparison,),
        positions=("S2", -1),
    )


def test_hover_names_the_features_that_came_with_a_point():
    """With the labels of the set that they are of: a number means something else in another set."""
    labels = {"small": {"3_7": "<b>"}, "large": {"3_7": "&"}}
    hover = {}
    for line in ioi_figure(result(), labels).data:
        if line.customdata is not None:
            hover.setdefault(line.name, [row[2] for row in line.customdata])
    assert hover["small"] == ["", "<br>+ 3_7: &lt;b&gt;", "<br>+ 3_1<br>+ 6 more"]
    assert hover["large"][1] == "<br>+ 3_7: &amp;" and hover["PCA"][1] == "<br>+ PCA 0"


def test_each_method_has_a_curve_with_its_band_in_each_of_four_plots():
    lines = [line for line in ioi_figure(result()).data if line.name]
    assert [line.name for line in lines].count("PCA") == 4 and sum(bool(line.showlegend) for line in lines) == 3
    assert len(selection_figure(result()).data) == 2  # of the dictionaries only


def test_a_result_reads_back_from_its_json_and_numbers_without_a_value_are_null():
    assert from_plain(IOIResult, result().to_json()) == result()
    plain = result(Estimate(math.nan)).to_json()
    assert plain["curves"][0]["points"][0]["recovered"] == {"value": None, "low": None, "high": None}
    assert math.isnan(from_plain(IOIResult, plain).curves[0].points[0].recovered.value)
    assert {"better", "worse", "crossing"} <= plain["comparisons"][0].keys() and plain["sentences"]
