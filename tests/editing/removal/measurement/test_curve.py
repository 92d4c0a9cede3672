"""The damage at which a share of a capability is gone: where it is known in closed form."""

import json
from dataclasses import astuple

import numpy as np
import pytest
from planted import unchecked
from removal_world import evaluated

from editing.interventions.compose import Scaled
from editing.removal.measurement.curve import SHARES, Curve, MeasuredCurve, damage_needed, left_of, strength_needed
from editing.removal.measurement.evaluation import Method
from sae_core.codec import from_plain, to_plain
from sae_core.estimate import Estimate


def needed(areas: list[float], share: float, strengths: list[float] | None = None) -> float:
    strengths = strengths or [float(i) for i in range(len(areas))]
    return strength_needed(np.array(strengths), np.array(areas)[:, None], share)[0]


def test_between_two_strengths_the_auroc_is_a_straight_line():
    assert needed([1.0, 0.5], 0.5) == pytest.approx(0.5) and needed([1.0, 0.5], 0.8) == pytest.approx(0.8)
    assert needed([1.0, 0.9, 0.6, 0.5], 0.8) == pytest.approx(2.0)
    assert needed([0.75, 0.5], 0.5) == pytest.approx(0.5)  # shares are of what the unedited model can do


def test_an_edit_that_passes_through_chance_removes_on_its_way():
    assert needed([1.0, 0.0], 0.8) == pytest.approx(0.4) and needed([0.0, 1.0], 0.8) == pytest.approx(0.4)
    assert needed([1.0, 0.0, 0.5, 1.0], 0.5) == pytest.approx(0.25)  # and it is the first time that counts


def test_what_is_never_removed_needs_infinitely_much():
    for areas in ([1.0, 1.0, 0.61], [0.0, 0.2, 0.39]):
        assert needed(areas, 0.8) == np.inf and np.isfinite(needed(areas, 0.5))


def test_a_damage_that_grows_with_the_square_is_read_off_exactly():
    strengths = np.array([0.0, 1.0, 2.0])
    areas, damages = np.array([[1.0, 0.5], [1.0, 0.5], [0.5, 0.0]]), 3 * strengths[:, None] ** 2 * [1.0, 2.0]
    areas[:, 1] = [1.0, 0.75, 0.5]
    first, second = damage_needed(strengths, areas, damages, 0.8)
    assert first == pytest.approx(3 * 1.8**2) and second == pytest.approx(6 * 1.6**2)
    assert np.isinf(damage_needed(strengths, np.ones((3, 1)), damages[:, :1], 0.5)).all()


class ByStrength:
    """Evaluates by a rule: the AUROC falls from 1 by the strength, in one resample more slowly."""

    def __init__(self, slow: float):
        self.slow, self.strengths = slow, []

    def capability_and_damage(self, edits, method):
        strength = edits[0].strength
        self.strengths.append(strength)
        areas = [1 - strength, 1 - self.slow * strength]
        return evaluated(method, 1 - strength, [strength**2], areas=areas)


def test_a_curve_ends_where_all_is_removed_in_every_resample():
    """What is needed is what it would be with all strengths; control: a resample that is slower keeps it going."""
    strengths = (0.25, 0.5, 0.75, 1.0)
    for slow, n_run in ((0.95, 2), (0.65, 3), (0.4, 4)):
        rule, whole = ByStrength(slow), ByStrength(slow)
        known = {0.0: evaluated(Method.FEATURES, 1.0, [0.0], areas=[1.0, 1.0])}
        with unchecked():
            curve = MeasuredCurve.of(rule, [None], known, strengths)
            points = {s: whole.capability_and_damage([Scaled(None, s)], Method.FEATURES) for s in strengths}
        assert rule.strengths == list(strengths[:n_run])
        assert curve.curve.needed == MeasuredCurve.through(known | points).curve.needed


def test_a_curve_says_how_often_a_share_is_reached():
    """In two of four resamples the second strength leaves too much."""
    rows = {
        0.0: evaluated(Method.NONE, 1.0, [0.0], areas=[1.0] * 4),
        1.0: evaluated(Method.FEATURES, 0.545, [0.04], areas=[0.5, 0.52, 0.7, 0.74]),
    }
    curve = MeasuredCurve.through(rows).curve
    assert [each.share for each in curve.needed] == list(SHARES) and curve.method == Method.FEATURES
    half, most, nearly = curve.needed
    assert half.reached == 1.0 and most.reached == 0.5 and nearly.reached == 0.5
    assert half.low < half.damage < half.high and half.damage == pytest.approx(0.04 * (0.25 / 0.455) ** 2)
    assert most.low < most.damage and most.high is None and most.interval().endswith(", never]")
    assert nearly.damage == pytest.approx(0.04 * (0.45 / 0.455) ** 2)
    assert [point.left.value for point in curve.points] == pytest.approx([1.0, 0.09])
    never = MeasuredCurve.through(rows | {1.0: evaluated(Method.FEATURES, 0.9, [0.04], areas=[0.9] * 4)}).curve.at(0.8)
    assert never.damage is None and never.reached == 0.0 and str(never) == "never"
    plain = json.loads(json.dumps(to_plain(curve), allow_nan=False))
    assert from_plain(Curve, plain) == curve


def test_what_may_be_left_is_what_the_interval_of_the_auroc_allows():
    """Once the interval of a capability that is gone was [0, 0]."""
    expected = {
        (0.5, 0.44, 0.58): (0.0, 0.0, 0.16),
        (0.2, 0.1, 0.4): (0.6, 0.2, 0.8),
        (0.95, 0.9, 1.0): (0.9, 0.8, 1.0),
    }
    for auroc, left in expected.items():
        assert astuple(left_of(Estimate(*auroc))) == pytest.approx(left)
