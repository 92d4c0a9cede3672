"""Strengths: the best of a grid, and the budget."""

import pytest
import torch
from editing.removal.compared_edits import fit_erasers
from editing.removal.feature_search import choose_features
from editing.removal.site_and_strength import GRID, affordable_strength, best_strength, largest_affordable
from removal_world import MIDDLE

from editing.interventions.compose import Scaled
from editing.interventions.patch import ablate
from editing.removal.class_scores import auroc_distance


@pytest.mark.slow
def test_the_budget_is_kept_on_the_text_for_choosing(runs_at_middle, text, components):
    """Control: with a large budget more is done, and it costs more than the small one allows."""
    dictionary, costs = components[MIDDLE], {}
    for budget in (0.01, 10.0):
        chosen = choose_features(runs_at_middle, dictionary, text, budget, shortlist=16, most=8)
        edit = ablate(MIDDLE, dictionary, chosen)
        assert chosen and text.kl([edit]) <= budget * 1.0001
        strength, costs[budget] = best_strength(runs_at_middle, edit, text, budget)
        assert costs[budget] == pytest.approx(text.kl([Scaled(edit, strength)])) and costs[budget] <= budget
    assert costs[10.0] > 0.01


@pytest.mark.slow
def test_the_strength_is_the_best_of_the_grid(storybook, task, runs_at_middle, text):
    """Against all strengths of the grid run one by one; a strength that was never run is never returned."""
    for edit in fit_erasers(storybook, [MIDDLE], task.tuning)[MIDDLE].values():
        strength, _ = best_strength(runs_at_middle, edit, text, 1e9)
        scores = runs_at_middle.scores_at(torch.tensor(GRID), runs_at_middle.change(edit))
        distances = auroc_distance(runs_at_middle.prompts, scores)
        assert strength in GRID and distances[GRID.index(strength)] <= distances.min() + 0.02
        assert distances.max() > distances.min() + 0.1  # control


def test_a_strength_that_costs_too_much_is_lowered(text, components):
    edit = ablate(MIDDLE, components[MIDDLE], list(range(20)))
    whole = text.kl([edit])
    assert affordable_strength([edit], 1.0, text, 100.0) == (1.0, pytest.approx(whole))
    budget = whole / 3
    strength, damage = affordable_strength([edit], 1.0, text, budget)
    assert damage == pytest.approx(text.kl([Scaled(edit, strength)]), rel=1e-4)
    assert 0 < strength < 1 and damage <= budget < text.kl([Scaled(edit, strength + 0.011)])


@pytest.mark.parametrize(
    "cost",
    [lambda s: s, lambda s: s**3, lambda s: s**0.3, lambda s: float(s > 0.37)],
    ids=("linear", "cubic", "root", "step"),
)
def test_the_largest_affordable_share_is_found_in_few_runs(cost):
    for most in (0.01, 0.2, 0.7, 0.999, 1.0):
        run = []
        share, share_cost = largest_affordable(lambda s, run=run: run.append(s) or cost(s), most)
        assert share_cost == cost(share) <= most and (share == 1.0 or cost(share + 0.0101) > most)
        assert len(run) <= 40
