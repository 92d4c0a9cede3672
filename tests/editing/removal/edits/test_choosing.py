"""Strengths: the least that removes the share, and the budget."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from comparing import close
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import unchecked
from removal_world import CONFIG, MIDDLE

from editing.interventions.compose import Scaled
from editing.interventions.patch import ablate
from editing.metrics import aurocs
from editing.removal.edits.choosing import EditSearch
from editing.removal.edits.erasers import Place, fit_erasers
from editing.removal.edits.strengths import EditAtStrengths, Reach, affordable_share, best_edit, largest_affordable
from editing.removal.measurement.cached_runs import PromptRuns
from editing.removal.measurement.evaluation import Method


@pytest.fixture(scope="module")
def search(storybook, task, text, components) -> EditSearch:
    return EditSearch(storybook, task, components, text, CONFIG)


@pytest.mark.slow
def test_the_strength_is_the_least_that_removes_the_share(search, task, runs_at_middle):
    """Against a fine grid run strength by strength; what is returned was run, and does remove the share."""
    eraser = fit_erasers(search.model, MIDDLE, task.tuning)[Method.LEACE, Place.ENDS]
    grid = torch.linspace(0.02, 2, 100)
    change = runs_at_middle.change(eraser)
    areas = aurocs(runs_at_middle.scores_at(grid, change), runs_at_middle.prompts.positive)
    for share in (0.5, 0.8):
        reach = replace(search, config=replace(CONFIG, share=share)).reach(runs_at_middle, eraser)
        least = grid[(2 * (areas - 0.5).abs() <= 1 - share + 1e-6).nonzero()[0]].item()
        assert reach.reached and reach.removed >= share and abs(reach.strength - least) < 0.12
        assert reach.damage == pytest.approx(search.text.kl([Scaled(eraser, reach.strength)]), rel=1e-4)


@pytest.mark.slow
def test_what_never_removes_the_share_is_given_where_it_removes_most(search, runs_at_middle, components):
    reach = search.reach(runs_at_middle, ablate(MIDDLE, components[MIDDLE], [120]))
    assert not reach.reached and reach.removed < 0.5 and reach.rank()[0]


def test_edits_at_several_sites_reach_as_far_as_at_one(search, runs_at_middle, components):
    edit = ablate(MIDDLE, components[MIDDLE], list(range(40)))
    alone, together = search.reach(runs_at_middle, edit), search.reach_together(runs_at_middle.prompts, [edit])
    assert alone.strength == pytest.approx(together.strength, abs=0.01)
    assert alone.damage == pytest.approx(together.damage, rel=0.05)


def test_a_strength_that_costs_too_much_is_lowered(search, text, runs_at_middle, components):
    edit = ablate(MIDDLE, components[MIDDLE], list(range(20)))
    free = search.reach(runs_at_middle, edit)
    budget = free.damage / 3
    within = search.reach(runs_at_middle, edit, budget)
    assert within.damage <= budget and within.strength < free.strength and not within.reached
    close(torch.tensor(text.kl([Scaled(edit, within.strength)])), torch.tensor(within.damage), 1e-4)
    assert text.kl([Scaled(edit, within.strength + 0.03 * free.strength)]) > budget
    assert affordable_share(lambda share: share**2, 4.0) == (1.0, 1.0)


def test_an_edit_that_turns_some_sentences_round_ranks_behind_one_that_removes():
    removes, turns = Reach(1.0, 0.8, 0.01, True, 0.2), Reach(1.0, 0.8, 1e-6, True, 0.7)
    assert removes.rank() < turns.rank() < Reach(1.0, 0.6, 1e-6, False, 0.4).rank()
    assert Reach(1.0, 0.8, 1e-3, True, 0.24).rank() < removes.rank()  # what is left within decides only in steps


def test_a_damage_that_no_token_of_the_text_could_show_ranks_behind_one_that_was_measured():
    """Control: the least damage that was measured at all ranks by itself."""
    unseen, measured, faint = (Reach(1.0, 0.8, damage, True, 0.2) for damage in (0.0, 0.01, 1e-9))
    assert faint.rank() < measured.rank() < unseen.rank() < Reach(1.0, 0.7, 0.01, False, 0.2).rank()


@pytest.mark.slow
def test_features_are_chosen_fitted_and_kept_within_the_budget(search, components, task, text):
    """Control: a budget of nothing leaves nothing."""
    choice = search._choice(MIDDLE)
    assert choice.edit.strengths is not None and 1 <= len(choice.edit.latents) <= CONFIG.max_features
    assert choice.reach.damage <= CONFIG.budget and choice.reach.removed > 0.05
    scores = PromptRuns.of(search.model, MIDDLE, task.check)
    left = scores.scores(scores.change(Scaled(choice.edit, choice.reach.strength))[None])
    assert 2 * (aurocs(left, task.check.positive) - 0.5).abs().item() < 1
    assert replace(search, config=replace(CONFIG, budget=1e-12))._choice(MIDDLE) is None


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


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.2, 3), st.floats(0, 0.1), st.integers(0, 3)), min_size=1, max_size=6), st.data())
def test_the_best_edit_is_the_first_in_rank_of_all(kinds, data):
    """Against the reach of every edit; and the text is not run for an edit that others beat without it."""
    budget, runs = data.draw(st.floats(0.001, 0.1)), []
    with unchecked():
        edits = [planted_edit(*kind, runs=runs) for kind in kinds]
        every = [planted_edit(*kind, runs=[]).reach(budget) for kind in kinds]
        best = best_edit(edits, budget, least=0.05)
    usable = [i for i, reach in enumerate(every) if reach.removed >= 0.05]
    expected = min(usable, key=lambda i: every[i].rank(), default=None)
    assert best == (None if expected is None else (expected, every[expected]))
    if expected is not None and every[expected].reached:
        assert len(runs) <= len(kinds)  # once for each edit at most: nothing is looked for below the budget


def test_the_text_is_not_run_for_what_leaves_more_within_sentences():
    """The second edit costs less and leaves capability within sentences: it ranks behind, unasked for its cost."""
    runs, others = [], []
    with unchecked():
        first, second = planted_edit(1.0, 0.02, 0, runs), planted_edit(1.0, 0.001, 1, others)
        best = best_edit([second, first], 0.05, least=0.05)
    assert best is not None and best[0] == 1 and best[1].reached and runs
    assert second.reached and second.within > 0.25 and others == []
    with unchecked():  # control: what leaves as little within sentences is asked, and wins by its cost
        best = best_edit([planted_edit(1.0, 0.001, 0, others), first], 0.05, least=0.05)
    assert best is not None and best[0] == 0 and others


def planted_edit(needs: float, cost: float, turned: int, runs: list) -> EditAtStrengths:
    """An edit that brings the classes together at the strength `needs`, and costs `cost` times its square.

    It turns the answers of `turned` of four sentences round twice as fast as those of the others, which leaves
    capability within them.
    """
    sentence = torch.arange(16) // 4
    positive = torch.arange(16) % 2 == 0
    prompts = SimpleNamespace(
        positive=positive,
        groups_of_both_classes=lambda: [sentence == number for number in range(4)],
    )
    side = torch.where(positive, 1.0, -1.0) + 0.01 * torch.arange(16)

    def scores(strengths):
        speed = torch.where(sentence < turned, 2.0, 1.0)
        return torch.stack([side * (1 - speed * s / needs) for s in strengths])

    def damage(strength: float) -> float:
        runs.append(strength)
        return cost * strength**2

    return EditAtStrengths(prompts, scores, damage, 0.8)
