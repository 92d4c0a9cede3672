"""Scores of the classes, and the model's score."""

from dataclasses import replace

import pytest
import torch
from two_classes import normal, two_classes

from editing.metrics import auroc
from editing.removal.class_scores import auroc_distance, model_score
from editing.removal.resampling import conditional_auroc
from editing.removal.two_class_prompts import TwoClassPrompts
from editing.tasks.pronouns import Form, Split, pronoun_prompts


def test_the_distance_is_what_is_left_over_all_and_within_groups():
    positive, group = torch.arange(60) % 2 == 0, torch.arange(60) // 2 % 3
    prompts, scores = two_classes(positive, group), normal(240, 0).view(4, 60)
    weights = torch.full((1, 60), 1 / 60, dtype=torch.float64)
    within = [conditional_auroc(prompts, row, weights).value - 0.5 for row in scores]
    plainly = [abs(auroc(row, positive) - 0.5) + left for row, left in zip(scores, within, strict=True)]
    assert auroc_distance(prompts, scores).tolist() == pytest.approx(plainly)


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
