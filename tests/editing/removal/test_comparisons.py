"""Frontiers, and features beside LEACE."""

from dataclasses import replace

import pytest
from removal_world import MIDDLE, evaluated, holds_its_value
from tiny import user_error

from editing.interventions.compose import Scaled
from editing.interventions.patch import ablate
from editing.removal.comparisons import Frontier, FrontierPoint, LeaceComparison, verdict
from editing.removal.evaluation import Method
from sae_core.estimate import Estimate


def points(*pairs: tuple[float, float]) -> Frontier:
    whole = tuple(FrontierPoint(0.0, Estimate(a), Estimate(a), Estimate(d)) for a, d in pairs)
    return Frontier(Method.LEACE, "here", whole)


def test_the_damage_at_which_a_capability_goes_is_interpolated():
    assert points((1.0, 0.0), (0.6, 0.1), (0.5, 0.2)).damage_when_gone() == pytest.approx(0.15)
    assert points((1.0, 0.0), (0.0, 1.0)).damage_when_gone() == pytest.approx(0.45)  # it passes through
    assert points((0.0, 0.0), (1.0, 1.0)).damage_when_gone() == pytest.approx(0.45)
    assert points((1.0, 0.0), (0.56, 1.0)).damage_when_gone() is None
    assert points((0.52, 0.0), (0.9, 1.0)).damage_when_gone() == 0.0


def test_a_frontier_runs_only_the_strengths_that_are_not_known(evaluator, components, monkeypatch):
    edit, run, evaluate = ablate(MIDDLE, components[MIDDLE], range(9)), [], evaluator.capability_and_damage
    whole = Frontier.of(evaluator, Method.FEATURES, [edit], (0.0, 0.5, 1.0))
    known = {s: evaluator.evaluate([Scaled(edit, s)], Method.FEATURES) for s in (0.0, 1.0)}

    def noted(edits, method):
        run.append(edits[0].strength)
        return evaluate(edits, method)

    monkeypatch.setattr(evaluator, "capability_and_damage", noted)
    assert Frontier.of(evaluator, Method.FEATURES, [edit], (0.0, 0.5, 1.0), known) == whole and run == [0.5]
    assert all(holds_its_value(point.within) for point in whole.points)
    with user_error("at least one strength"):
        Frontier.of(evaluator, Method.FEATURES, [edit], ())


def compared(area: float, features: list[float], leace: list[float]) -> LeaceComparison:
    return LeaceComparison.of(evaluated(Method.FEATURES, area, features), evaluated(Method.LEACE, 0.5, leace), 0)


def test_the_verdict_says_whether_features_beat_leace():
    much, little = [1.0, 1.2, 0.9, 1.1], [0.1, 0.2, 0.1, 0.1]
    yes, no, stays = compared(0.5, little, much), compared(0.5, much, little), compared(0.7, little, much)
    assert yes.better and yes.clearly
    assert verdict([yes]).startswith("Yes") and "at 1 of 1 sites (resid_post.1)" in verdict([yes])
    assert not no.better and verdict([no]).startswith("No")
    assert verdict([yes, no]).startswith("Partly") and "at 1 of 2 sites" in verdict([yes, no])
    assert not stays.better and verdict([stays]).startswith("No") and "remove it at 0 of 1 sites" in verdict([stays])
    unclear = compared(0.5, [1.0, 0.0], [0.0, 1.1])
    assert unclear.better and not unclear.clearly and "95% interval at 0" in verdict([unclear])
    assert "both remove it" in verdict([yes, replace(yes, site="all layers")])
