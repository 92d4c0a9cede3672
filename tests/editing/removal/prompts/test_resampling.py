"""Intervals that know what prompts share, and AUROCs within groups."""

import math
from dataclasses import astuple, replace

import pytest
import torch
from two_classes import normal, two_classes

from editing.metrics import auroc, resampled
from editing.removal.prompts.resampling import bootstrap_weights, conditional_auroc, pooled_auroc, resampling_scheme
from editing.removal.prompts.two_class_prompts import TwoClassPrompts
from sae_core.estimate import Estimate


def test_the_interval_of_an_auroc_covers_it():
    """Two classes one standard deviation apart, AUROC 0.76: nine of ten intervals or more should hold it."""
    truth = 0.5 * (1 + math.erf(1 / 2))
    positive, group = torch.arange(128) % 2 == 0, torch.arange(128) // 2 % 16
    held = 0
    for seed in range(40):
        prompts = two_classes(positive, group)
        pooled = pooled_auroc(prompts, normal(128, seed) + positive, bootstrap_weights(prompts, seed, 300))
        held += not pooled.excludes(truth)
    assert held >= 35


def names_and_templates(n_names: int = 12, n_templates: int = 16) -> tuple[TwoClassPrompts, torch.Tensor, torch.Tensor]:
    """Every name in every template; half of the names are of each class."""
    name = torch.arange(n_names).repeat_interleave(n_templates)
    template = torch.arange(n_templates).repeat(n_names)
    return two_classes(name % 2 == 0, torch.zeros_like(name), template=template, name=name), name, template


def test_the_interval_covers_where_prompts_share_names():
    """Names decide most of a score, as in pronouns: resampling templates alone, as once, is far too sure of itself."""
    prompts, name, template = names_and_templates()
    positive, truth = prompts.positive, 0.5 * (1 + math.erf(1 / 2 / math.sqrt(1.25)))
    held = {"crossed": 0, "templates": 0}
    for seed in range(30):
        scores = normal(12, seed)[name] + 0.3 * normal(16, 100 + seed)[template] + 0.5 * normal(192, 200 + seed)
        crossed, templates = bootstrap_weights(prompts, seed, 300), resampled(template, seed, 300)
        for scheme, weights in (("crossed", crossed), ("templates", templates)):
            held[scheme] += not pooled_auroc(prompts, scores + positive, weights).excludes(truth)
    assert held["crossed"] >= 25 and held["templates"] <= 20


def test_crossed_weights_are_products_of_counts_of_names_and_templates():
    prompts, _, template = names_and_templates(6, 4)
    weights = bootstrap_weights(prompts, 0, 200).view(-1, 6, 4)
    assert torch.equal(bootstrap_weights(prompts, 0, 200).view(-1, 6, 4), weights) and weights.min() == 0
    assert (weights.sum((1, 2)) - 1).abs().max() < 1e-12
    rank_one = weights.sum(2, keepdim=True) * weights.sum(1, keepdim=True)
    assert (weights - rank_one).abs().max() < 1e-12
    plain = replace(prompts, name=None)
    assert torch.equal(bootstrap_weights(plain, 0, 200), resampled(template, 0, 200))
    assert "templates, then" in resampling_scheme(plain) and "names" in resampling_scheme(prompts)


def test_leftovers_of_opposite_sign_cancel_over_all_but_not_within():
    positive, group = torch.arange(64) % 2 == 0, torch.arange(64) // 2 % 2
    prompts = two_classes(positive, group)
    scores = torch.where(group == 0, 1.0, -1.0) * torch.where(positive, 1.0, -1.0)
    weights = bootstrap_weights(prompts, 0)
    pooled = pooled_auroc(prompts, scores, weights)
    assert pooled.value == 0.5 and not pooled.excludes(0.5)
    assert conditional_auroc(prompts, scores, weights) == Estimate(1.0, 1.0, 1.0)
    within = conditional_auroc(prompts, normal(64, 3), weights)
    assert within.low <= within.value <= within.high < 1.0


def test_a_resample_without_a_class_in_a_group_says_nothing_of_that_group():
    """Once it counted as perfectly hidden. Three templates of one class each, so that resamples often lack one."""
    positive = torch.arange(18) % 6 < 3
    prompts = two_classes(positive, torch.zeros(18, dtype=torch.long), template=torch.arange(18) // 3)
    scores = positive.float()  # told apart in every resample that has both
    weights = bootstrap_weights(prompts, 0)
    assert (weights[:, positive].sum(1) == 0).any()
    for auroc_of in (pooled_auroc, conditional_auroc):
        assert astuple(auroc_of(prompts, scores, weights)) == pytest.approx((1, 1, 1))


def test_groups_of_one_pair_do_not_count_as_sentences():
    """One prompt of each class is always told apart, by any noise at all."""
    positive, group = torch.arange(64) % 2 == 0, torch.arange(64) // 2
    prompts, noise = two_classes(positive, group), normal(64, 3)
    within = conditional_auroc(prompts, noise, bootstrap_weights(prompts, 0))
    assert within.value == 0.5 + abs(auroc(noise, positive) - 0.5)
