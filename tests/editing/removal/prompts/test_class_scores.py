"""Scores of the classes, and the model's score."""

from dataclasses import replace

import pytest
import torch
from two_classes import normal, two_classes

from editing.metrics import auroc
from editing.removal.prompts.class_scores import left_within, model_score
from editing.removal.prompts.resampling import conditional_auroc
from editing.removal.prompts.two_class_prompts import TwoClassPrompts
from editing.tasks.pronouns import Form, Split, pronoun_prompts


def test_answers_turned_round_in_half_of_the_groups_cancel_over_all_prompts_and_not_within():
    positive, group = torch.arange(60) % 2 == 0, torch.arange(60) // 2 % 3
    prompts, scores = two_classes(positive, group), normal(240, 0).view(4, 60)
    weights = torch.full((1, 60), 1 / 60, dtype=torch.float64)
    plainly = [2 * (conditional_auroc(prompts, row, weights).value - 0.5) for row in scores]
    assert left_within(prompts, scores).tolist() == pytest.approx(plainly)
    halves = torch.arange(60) // 2 % 2
    turned = torch.where((halves == 0) == positive, 1.0, -1.0)
    assert abs(auroc(turned, positive) - 0.5) < 0.05
    assert left_within(two_classes(positive, halves), turned[None]).item() == 1.0


@pytest.mark.parametrize("form", Form)
def test_storybook_predicts_pronouns_and_the_interval_knows_its_names(storybook, form):
    prompts = TwoClassPrompts.of_pronouns(pronoun_prompts(storybook, [Split.TEST], 64, seed=0, form=form))
    score, area = model_score(storybook, prompts)
    assert score.accuracy.value >= 0.99 and area >= 0.99 and score.top1 >= 0.9 and score.n == 64
    difference = score.logit_difference
    assert difference.low < difference.value < difference.high and score.accuracy.low < score.accuracy.value
    templates_only = model_score(storybook, replace(prompts, name=None))[0].logit_difference
    assert difference.high - difference.low > 1.2 * (templates_only.high - templates_only.low)
    turned, area = model_score(storybook, replace(prompts, positive=~prompts.positive))  # control
    assert turned.accuracy.value <= 0.01 and area <= 0.01 and turned.top1 <= 0.1
