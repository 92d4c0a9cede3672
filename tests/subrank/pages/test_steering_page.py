"""The page of a steering: everything is escaped, marked and stated."""

from dataclasses import replace

from editing.steering.continuations import Continuation
from editing.steering.dose_response import Along, Dose, DoseResponse
from editing.steering.edits import Mode
from sae_core.estimate import Estimate
from subrank.pages.steering_figure import steering_figure
from subrank.pages.steering_page import steering_section, texts_section

NASTY = "<script>alert(1)</script>"


def response(*, kl: bool = True) -> DoseResponse:
    doses = tuple(
        Dose(method, strength, Estimate(strength, strength - 1, strength + 1), Estimate(0.0, 0.0, 0.0), harm, 2.5)
        for method in Along
        for strength in (4.0, -1.0)
        for harm in [Estimate(0.125, 0.0, 0.5) if kl else None]
    )
    slope = {Along.FEATURES: Estimate(1.0, 0.9, 1.1)}
    return DoseResponse(("3_17",), Mode.SCALE, (12.5,), (0.01,), (NASTY,), (NASTY,), doses, slope, 8, 20, 30)


def texts() -> list[Continuation]:
    return [
        Continuation(NASTY, None, (" a", " b"), (False, False), False),
        Continuation(NASTY, 4.0, (" a", NASTY, "&"), (False, True, True), True),
    ]


def test_text_is_escaped_and_what_changed_is_marked():
    page = texts_section(texts())
    assert "<script>" not in page and "<mark>&lt;script&gt;alert(1)&lt;/script&gt;&amp;</mark>" in page
    assert "unedited" in page and page.count("■") == 2  # one text ended, and the note says what that means
    assert "<script>alert" not in steering_section(response(), texts())


def test_every_number_has_its_interval():
    page = steering_section(response(), texts())
    assert "4.00<small>[3.00, 5.00]</small>" in page and "0.12<small>[0, 0.5]</small>" in page
    assert "features 1.00 [0.90, 1.10]" in page
    assert "active on 1.00%" in page and "at most 12.5" in page


def test_what_could_not_be_measured_is_not_shown():
    assert "–" in steering_section(response(kl=False), texts())
    silent = replace(response(), doses=(), n_places=0, slope={})
    page = steering_section(silent, texts())
    assert "not active on the held-out text" in page and "plotly" not in page


def test_the_figure_has_a_line_per_method_with_strengths_in_order():
    figure = steering_figure(response())
    assert [trace.name for trace in figure.data[::3]] == list(Along)
    assert all(trace.x == (-1.0, 4.0) for trace in figure.data)
    assert figure.data[0].error_y.array == (1.0, 1.0)
