"""Strengths fitted to features: every derivative against differences, every step against plain alternatives."""

from dataclasses import replace

import pytest
import torch
from comparing import close
from handmade import random_topk
from removal_world import MIDDLE, MLP, World, plain_scores

from editing.interventions.patch import ablate
from editing.removal.edits.feature_fit import (
    MOST,
    AtSite,
    AtSites,
    _gaps,
    _Objective,
    fit_features,
    fit_strengths,
    shortlist,
    with_strengths,
)
from editing.removal.measurement.cached_runs import PromptRuns
from sae_core.sites import Site

LATENTS = [1, 3, 5]


@pytest.fixture(scope="module")
def few(runs_at_middle) -> PromptRuns:
    return runs_at_middle.first(12)


def test_scores_under_strengths_are_those_of_the_edited_model(storybook, few):
    """A slow reference: hooks on, each prompt alone."""
    sae, a = random_topk(128), torch.tensor([0.5, 2.0, 0.0])
    scores, _ = AtSite.of(few, sae, LATENTS).linearised(a)
    edit = with_strengths([ablate(MIDDLE, sae, LATENTS)], a)[0]
    close(scores, plain_scores(storybook, few.prompts, edit), 1e-4)
    assert (scores - plain_scores(storybook, few.prompts)).abs().max() > 1e-2  # control


def test_features_at_several_sites_are_ablated_one_above_the_other(storybook, few):
    edits = [ablate(MLP, random_topk(128, seed=1), LATENTS), ablate(MIDDLE, random_topk(128), LATENTS)]
    a = torch.tensor([0.5, 2.0, 0.0, 1.0, 1.5, 0.3])
    scores, _ = AtSites(storybook, few.prompts, edits).linearised(a)
    close(scores, plain_scores(storybook, few.prompts, *with_strengths(edits, a)), 1e-4)


@pytest.mark.parametrize("sites", [1, 2])
def test_slopes_are_those_of_differences(storybook, few, sites):
    """Central differences in float32: to a percent of the largest."""
    sae = random_topk(128)
    a = torch.tensor([0.5, 1.2, 0.8])
    if sites == 1:
        problem = AtSite.of(few, sae, LATENTS)
    else:
        edits = [ablate(MLP, random_topk(128, seed=1), LATENTS[:1]), ablate(MIDDLE, sae, LATENTS[1:])]
        problem = AtSites(storybook, few.prompts, edits)
    slopes = problem.linearised(a)[1]
    for j in range(3):
        step = torch.zeros(3)
        step[j] = 0.02
        difference = (problem.linearised(a + step)[0] - problem.linearised(a - step)[0]) / 0.04
        close(slopes[:, j], difference, 0.02 * slopes.abs().max().item() + 1e-3)
    assert slopes.abs().max() > 0.01


def test_one_site_is_a_case_of_several(storybook, few):
    sae, a = random_topk(128), torch.tensor([0.5, 1.2, 0.8])
    alone, together = AtSite.of(few, sae, LATENTS), AtSites(storybook, few.prompts, [ablate(MIDDLE, sae, LATENTS)])
    for part, other in zip(alone.linearised(a), together.linearised(a), strict=True):
        close(part, other, 1e-3)


def test_a_step_is_the_minimum_of_its_bounded_problem(few):
    """No feasible strengths do better where the gaps are taken to be linear; the bounds bind."""
    g = torch.Generator().manual_seed(0)
    root, slopes = torch.randn(6, 6, generator=g).double(), torch.randn(4, 6, generator=g).double()
    objective, a = _Objective(root @ root.T / 600, 1.0), torch.rand(6, generator=g).double()
    gaps = slopes @ (torch.tensor([1.0, 0, 2, -2, 0, 9]).double())  # wants strengths on both sides of the bounds
    chosen = [0, 2, 3, 5]
    best, value = objective.solved(chosen, gaps, slopes, a)

    def linear(b: torch.Tensor) -> float:
        return objective.value(gaps + slopes @ (b - a), b)

    assert value == pytest.approx(linear(best)) and ((best >= 0) & (best <= MOST)).all()
    assert best[[1, 4]].tolist() == [0.0, 0.0] and best[chosen].min() < 1e-9 and best.max() > 1
    for _ in range(300):
        other = torch.zeros_like(best)
        other[chosen] = MOST * torch.rand(4, generator=g).double() ** 2
        assert linear(other) >= value - 1e-9


def test_the_feature_that_carries_the_class_is_ablated_and_no_other():
    """And with a price on it, only in part."""
    world = World()
    runs = PromptRuns.of(world.model, Site(0), world.prompts(0, 16))
    latents = shortlist(runs, world.whole, 6)
    assert latents[0] == 0
    problem, free = AtSite.of(runs, world.whole, latents), torch.zeros(len(latents), len(latents)).double()
    fits = fit_features(problem, free, [1, 2, 4])
    assert [fit.columns for fit in fits] == [[0]] and fits[0].strengths.tolist() == pytest.approx([1.0], abs=0.01)
    dear = free.clone()
    dear[0, 0] = 0.1
    assert 0.3 < fit_features(problem, dear, [1])[0].strengths.item() < 0.7
    without = shortlist(PromptRuns.of(world.model, Site(0), world.prompts(0, 16)), world.without, 6)  # control
    fits = fit_features(AtSite.of(runs, world.without, without), free[: len(without), : len(without)], [1, 2])
    gaps = [_gaps(runs.prompts, AtSite.of(runs, world.without, without).linearised(torch.zeros(len(without)))[0])]
    assert not fits or gaps[0].abs().mean() > 0.5


def test_strengths_fitted_together_do_better_than_where_they_start(storybook, few, text):
    edits = [ablate(MLP, random_topk(128, seed=1), LATENTS), ablate(MIDDLE, random_topk(128), LATENTS)]
    problem, start = AtSites(storybook, few.prompts, edits), torch.full((6,), 0.5)
    gram = 1e-3 * torch.eye(6).double()
    fitted, objective = fit_strengths(problem, gram, start), _Objective.at(problem, gram)
    values = [objective.value(objective.linearised(problem, a)[0], a) for a in (fitted.double(), start.double())]
    assert values[0] < values[1]


def test_the_shortlist_holds_those_that_close_the_gap(few):
    """First order: against ablating a little of each latent alone."""
    sae = random_topk(128)
    listed = shortlist(few, sae, 4)
    every = AtSite.of(few, sae, list(range(len(sae.directions))))
    scores, slopes = every.linearised(torch.zeros(len(sae.directions)))
    positive = few.prompts.positive
    gap = scores[positive].mean() - scores[~positive].mean()
    closing = -gap.sign() * (slopes[positive].mean(0) - slopes[~positive].mean(0))
    assert listed == closing.topk(4).indices.tolist() and closing[listed].min() > 0


def test_an_ablation_of_strength_two_pushes_as_far_beyond(few):
    sae = random_topk(128)
    plain = ablate(MIDDLE, sae, LATENTS)
    double = replace(plain, strengths=torch.full((3,), 2.0))
    close(double(few.x) - few.x, 2 * (plain(few.x) - few.x), 1e-4)
