"""Prompts of two classes: AUROCs, and intervals that know what prompts share."""

import math
from collections.abc import Sequence
from dataclasses import astuple, replace

import pytest
import torch

from editing.metrics import auroc, resampled
from editing.removal.two_class_prompts import Contrast, model_score, together
from editing.tasks.pairs import PromptPairs
from editing.tasks.pronouns import Form, Split, pronoun_prompts
from sae_core.estimate import Estimate


def contrast(
    positive: torch.Tensor,
    group: torch.Tensor,
    *,
    template: torch.Tensor | None = None,
    name: torch.Tensor | None = None,
) -> Contrast:
    n, one = len(group), torch.zeros_like(group)
    tokens = torch.zeros(n, 2, dtype=torch.long)
    return Contrast(tokens, one, positive, one, one + 1, group, group if template is None else template, name)


def normal(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def test_the_interval_of_an_auroc_covers_it():
    """Two classes one standard deviation apart, AUROC 0.76: nine of ten intervals or more should hold it."""
    truth = 0.5 * (1 + math.erf(1 / 2))
    positive, group = torch.arange(128) % 2 == 0, torch.arange(128) // 2 % 16
    held = 0
    for seed in range(40):
        prompts = contrast(positive, group)
        pooled, _ = prompts.auroc_estimates(normal(128, seed) + positive, prompts.weights(seed, 300))
        held += not pooled.excludes(truth)
    assert held >= 35


def names_and_templates(n_names: int = 12, n_templates: int = 16) -> tuple[Contrast, torch.Tensor, torch.Tensor]:
    """Every name in every template; half of the names are of each class."""
    name = torch.arange(n_names).repeat_interleave(n_templates)
    template = torch.arange(n_templates).repeat(n_names)
    return contrast(name % 2 == 0, torch.zeros_like(name), template=template, name=name), name, template


def test_the_interval_covers_where_prompts_share_names():
    """Names decide most of a score, as in pronouns: resampling templates alone, as once, is far too sure of itself."""
    prompts, name, template = names_and_templates()
    positive, truth = prompts.positive, 0.5 * (1 + math.erf(1 / 2 / math.sqrt(1.25)))
    held = {"crossed": 0, "templates": 0}
    for seed in range(30):
        scores = normal(12, seed)[name] + 0.3 * normal(16, 100 + seed)[template] + 0.5 * normal(192, 200 + seed)
        for how, weights in (("crossed", prompts.weights(seed, 300)), ("templates", resampled(template, seed, 300))):
            pooled, _ = prompts.auroc_estimates(scores + positive, weights)
            held[how] += not pooled.excludes(truth)
    assert held["crossed"] >= 25 and held["templates"] <= 20


def test_crossed_weights_are_products_of_counts_of_names_and_templates():
    prompts, _, template = names_and_templates(6, 4)
    weights = prompts.weights(0, 200).view(-1, 6, 4)
    assert torch.equal(prompts.weights(0, 200), prompts.weights(0, 200)) and weights.min() == 0
    assert (weights.sum((1, 2)) - 1).abs().max() < 1e-12
    rank_one = weights.sum(2, keepdim=True) * weights.sum(1, keepdim=True)
    assert (weights - rank_one).abs().max() < 1e-12
    plain = replace(prompts, name=None)
    assert torch.equal(plain.weights(0, 200), resampled(template, 0, 200)) and "templates, then" in plain.resampling
    assert "names" in prompts.resampling


def test_leftovers_of_opposite_sign_cancel_over_all_but_not_within():
    positive, group = torch.arange(64) % 2 == 0, torch.arange(64) // 2 % 2
    prompts = contrast(positive, group)
    scores = torch.where(group == 0, 1.0, -1.0) * torch.where(positive, 1.0, -1.0)
    assert auroc(scores, positive) == 0.5 and prompts.within(scores) == 1.0
    pooled, within = prompts.auroc_estimates(scores, prompts.weights(0))
    assert not pooled.excludes(0.5) and within == Estimate(1.0, 1.0, 1.0)
    noise = normal(64, 3)
    _, within = prompts.auroc_estimates(noise, prompts.weights(0))
    assert within.low <= within.value == prompts.within(noise) <= within.high < 1.0


def test_a_resample_without_a_class_in_a_group_says_nothing_of_that_group():
    """Once it counted as perfectly hidden. Three templates of one class each, so that resamples often lack one."""
    positive = torch.arange(18) % 6 < 3
    prompts = contrast(positive, torch.zeros(18, dtype=torch.long), template=torch.arange(18) // 3)
    scores = positive.float()  # told apart in every resample that has both
    assert (prompts.weights(0)[:, positive].sum(1) == 0).any()
    for estimate in prompts.auroc_estimates(scores, prompts.weights(0)):
        assert astuple(estimate) == pytest.approx((1, 1, 1))


def test_groups_of_one_pair_do_not_count_as_sentences():
    """One prompt of each class is always told apart, by any noise at all."""
    positive, group = torch.arange(64) % 2 == 0, torch.arange(64) // 2
    noise = normal(64, 3)
    assert contrast(positive, group).within(noise) == 0.5 + abs(auroc(noise, positive) - 0.5)


def test_told_apart_is_what_is_left_over_all_and_within_groups():
    positive, group = torch.arange(60) % 2 == 0, torch.arange(60) // 2 % 3
    prompts, scores = contrast(positive, group), normal(240, 0).view(4, 60)
    plainly = [abs(auroc(row, positive) - 0.5) + prompts.within(row) - 0.5 for row in scores]
    assert prompts.told_apart(scores).tolist() == pytest.approx(plainly)


# ---- halves ----------------------------------------------------------------------------------------


def units(labels: torch.Tensor, kept: torch.Tensor) -> set[int]:
    return {*labels[kept].tolist()}


def test_halves_share_no_name_and_are_balanced(storybook):
    prompts = Contrast.of_pronouns(pronoun_prompts(storybook, [Split.TEST], 128, seed=0))
    half = prompts.halves()
    assert not units(prompts.name, half) & units(prompts.name, ~half)
    assert units(prompts.template, half) & units(prompts.template, ~half)
    for kept in (half, ~half):
        classes = [len(units(prompts.name, kept & (prompts.positive == one))) for one in (True, False)]
        assert min(classes) >= 9 and 0.3 < kept.double().mean() < 0.7


def test_without_names_halves_share_no_template_and_of_one_template_no_pair():
    positive, template = torch.arange(64) % 2 == 0, torch.arange(64) // 8
    half = contrast(positive, template).halves()
    assert not units(template, half) & units(template, ~half) and half.sum() == 32
    half = contrast(positive, torch.zeros_like(template)).halves()
    assert torch.equal(half[::2], half[1::2]) and half.sum() == 32
    assert contrast(positive[:8], template[:8]).halves() is None  # two of each class to a half


# ---- where prompts come from -----------------------------------------------------------------------


def pairs_of(answer: Sequence[int], foil: Sequence[int]) -> PromptPairs:
    tokens = torch.arange(3 * len(answer)).view(-1, 3)
    one, other = torch.tensor(answer), torch.tensor(foil)
    groups = torch.arange(len(answer))
    return PromptPairs("x", tokens, tokens + 100, one, other, other, torch.full_like(one, 2), groups=groups)


def test_the_answer_of_the_smaller_id_is_positive():
    """The same in every split: once it was the answer of the first pair, which another split may begin otherwise."""
    made = Contrast.of_pairs(pairs_of([5, 6, 5, 7], [6, 5, 6, 8]))
    assert made.positive.tolist() == [True, False, False, True, True, False, True, False]
    assert made.yes.tolist() == [5, 5, 5, 5, 5, 5, 7, 7] and made.no.tolist() == [6, 6, 6, 6, 6, 6, 8, 8]
    assert made.tokens[2].tolist() == [3, 4, 5] and made.tokens[3].tolist() == [103, 104, 105]
    turned = Contrast.of_pairs(pairs_of([6, 5], [5, 6]))
    assert turned.yes.tolist() == [5] * 4 and turned.positive.tolist() == [False, True, True, False]


def test_classes_can_be_told():
    made = Contrast.of_pairs(pairs_of([5, 6, 7], [6, 5, 8]), torch.tensor([True, False, False]))
    assert made.positive.tolist() == [True, False, False, True, False, True]
    assert made.yes.tolist() == [5, 5, 5, 5, 8, 8] and made.no.tolist() == [6, 6, 6, 6, 7, 7]


def test_sets_of_prompts_are_mixed_as_they_are_long():
    long = Contrast.of_pairs(pairs_of([5] * 4, [6] * 4))
    short = Contrast.of_pairs(pairs_of([7, 7], [8, 8])).rows(slice(0, 2))
    both = together([long, replace(short, tokens=short.tokens[:, :2])])
    assert len(both) == 10 and both.yes[:5].tolist().count(7) == 1 and both.name is None
    assert torch.equal(both.tokens[both.yes == 7][:, 1:], short.tokens[:, 1:2].expand(-1, 2))


@pytest.mark.parametrize("form", Form)
def test_storybook_predicts_pronouns_and_the_interval_knows_its_names(storybook, form):
    prompts = Contrast.of_pronouns(pronoun_prompts(storybook, [Split.TEST], 64, seed=0, form=form))
    own, area = model_score(storybook, prompts)
    assert own.accuracy.value >= 0.99 and area >= 0.99 and own.top1 >= 0.9 and own.n == 64
    low, high = own.logit_difference.low, own.logit_difference.high
    assert low < own.logit_difference.value < high and own.accuracy.low < own.accuracy.value
    templates_only, _ = model_score(storybook, replace(prompts, name=None))
    assert high - low > 1.2 * (templates_only.logit_difference.high - templates_only.logit_difference.low)
    turned, area = model_score(storybook, replace(prompts, positive=~prompts.positive))  # control
    assert turned.accuracy.value <= 0.01 and area <= 0.01 and turned.top1 <= 0.1
