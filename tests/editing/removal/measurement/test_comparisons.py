"""Features beside other methods: who needs less damage, and how surely."""

import pytest
from removal_world import evaluated

from editing.removal.measurement.comparisons import compared, verdict
from editing.removal.measurement.curve import MeasuredCurve
from editing.removal.measurement.evaluation import Method


def curve(method: Method, area: float, damages: list[float], site: str = "resid_post.1"):
    rows = {
        0.0: evaluated(Method.NONE, 1.0, [0.0], areas=[1.0] * 4, site=site),
        1.0: evaluated(method, area, damages, areas=[area] * 4, site=site),
    }
    return MeasuredCurve.through(rows)


def test_less_damage_at_the_same_share_is_better_and_never_is_worse_than_any():
    curves = {
        Method.FEATURES: curve(Method.FEATURES, 0.5, [0.01, 0.02, 0.01, 0.02]),
        Method.LEACE: curve(Method.LEACE, 0.5, [0.2, 0.3, 0.3, 0.2]),
        Method.MEANS: curve(Method.MEANS, 0.9, [1e-4] * 4),
        Method.ORTHOGONAL: curve(Method.ORTHOGONAL, 0.5, [0.001, 0.002, 0.03, 0.03]),
    }
    at = {each.rival: each for each in compared(curves) if each.share == 0.8}
    assert at[Method.LEACE].better and at[Method.LEACE].clearly and at[Method.LEACE].less == 1.0
    assert at[Method.LEACE].times == pytest.approx(0.25 / 0.015)
    assert at[Method.MEANS].clearly and at[Method.MEANS].other.damage is None and at[Method.MEANS].times is None
    assert not at[Method.ORTHOGONAL].clearly and at[Method.ORTHOGONAL].less == 0.5
    assert "at 1 of 1 sites (resid_post.1; beyond the 95% interval at 1)" in verdict([*at.values()], Method.LEACE, 0.8)


def test_features_that_never_get_there_are_not_better():
    """Control: even where the rival does not either."""
    curves = {
        Method.FEATURES: curve(Method.FEATURES, 0.8, [1e-6] * 4),
        Method.LEACE: curve(Method.LEACE, 0.9, [1.0] * 4),
    }
    at = next(each for each in compared(curves) if each.share == 0.8)
    assert not at.better and at.less == 0.0 and at.times is None
    assert "at 0 of 1 sites" in verdict([at], Method.LEACE, 0.8)
    assert "not compared" in verdict([], Method.LEACE, 0.8)
