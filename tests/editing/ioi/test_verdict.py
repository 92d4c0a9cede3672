"""One sentence that names the best baseline, who is ahead where, and stays short."""

import pytest

from editing.ioi.curve import Curve, PatchingPoint
from editing.ioi.curve_comparison import CurveComparison
from editing.ioi.verdict import best_rival, verdict
from sae_core.estimate import Estimate

COUNTS = (0, 1, 4, 16, 32, 64)
SETS = ("features", "other features")


def curve(name: str, kls) -> Curve:
    nothing = Estimate(0.0, 0.0, 0.0)
    points = [
        PatchingPoint(n, Estimate(float(kl)), nothing, nothing, nothing) for n, kl in zip(COUNTS, kls, strict=True)
    ]
    return Curve(name, tuple(points))


def compared(baseline: str, signs) -> CurveComparison:
    """-1 where the dictionary is better, 1 where it is worse, 0 where nothing can be said."""
    difference = tuple(Estimate(float(sign), sign - 0.5, sign + 0.5) for sign in signs)
    return CurveComparison("features", baseline, COUNTS, difference, (), ())


CURVES = [
    curve("features", (9, 8, 5, 1, 0.5, 0.4)),
    curve("PCA", (9, 8, 7, 4, 1, 0)),
    curve("neurons", (9, 8, 6, 3, 1, 0)),
]


def test_the_best_baseline_is_named_and_every_baseline_must_be_beaten():
    comparisons = [compared("PCA", (0, -1, -1, -1, -1, 1)), compared("neurons", (0, 0, -1, -1, 0, 0))]
    text = verdict("features", CURVES, comparisons, SETS)
    assert text.startswith("with 16 features features leaves 1.00 of 9.00 nats, the best baseline (neurons) 3.00; ")
    assert text.endswith("; it beats every baseline at 4-16; it is behind PCA at 64")
    assert best_rival(CURVES, SETS) == "neurons"


@pytest.mark.parametrize(
    ("pca", "neurons", "end"),
    [
        ((0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0), "at no count does it beat every baseline; no baseline is ahead"),
        (
            (0, 1, 1, 1, 1, 1),
            (0, 0, 0, 0, 0, 1),
            "does it beat every baseline; it is behind a baseline at 1-64",
        ),
        ((0, -1, 0, -1, 0, -1), (0, -1, 0, -1, 0, -1), "at 1, 16 and 1 more; no baseline is ahead"),
    ],
)
def test_who_is_ahead_where(pca, neurons, end):
    text = verdict("features", CURVES, [compared("PCA", pca), compared("neurons", neurons)], SETS)
    assert text.endswith(end) and len(text.split()) < 40


def test_without_baselines_it_says_what_is_left():
    assert verdict("features", CURVES[:1], [], SETS) == "with 16 features features leaves 1.00 of 9.00 nats"


def test_another_set_is_no_baseline():
    curves = [*CURVES, curve("other features", (9, 1, 0, 0, 0, 0))]
    text = verdict(
        "features", curves, [compared("PCA", (0, 0, 0, 0, 0, 0)), compared("neurons", (0, 0, 0, 0, 0, 0))], SETS
    )
    assert "the best baseline (neurons) 3.00" in text


def test_a_count_that_only_one_baseline_has_is_not_hidden():
    few = CurveComparison("features", "PCA", COUNTS[:4], (Estimate(-1.0, -2.0, -0.5),) * 4, (), ())
    text = verdict("features", CURVES, [few, compared("neurons", (-1, -1, -1, -1, 1, 1))], SETS)
    assert text.endswith("it beats every baseline at 0-16; it is behind neurons at 32-64")
