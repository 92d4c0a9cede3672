"""`editing/tasks/score.py`: the model's own score, and how far it can be trusted."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editing.metrics import resampled
from editing.tasks.ioi import Corruption, IOITask
from editing.tasks.score import TaskScore, task_score, wilson_interval

N = 64


@pytest.fixture(scope="module")
def task(storybook) -> IOITask:
    return IOITask.of(storybook)


def test_own_score_equals_a_plain_loop(storybook, task):
    pairs = task.pairs(storybook, Corruption.SWAP, "test", 10, seed=3)
    pairs = replace(pairs, answer=pairs.answer.where(torch.arange(10) > 2, pairs.foil), rival=pairs.foil + 1)
    right = top = 0
    difference = 0.0
    for row, text in enumerate(pairs.texts):
        logits = storybook.logits(torch.tensor([[storybook.bos_id, *storybook.to_ids(text)]]))[0, -1]
        answer, foil = int(pairs.answer[row]), int(pairs.rival[row])
        right += bool(logits[answer] > logits[foil])
        top += int(logits.argmax()) == answer
        difference += float(logits[answer] - logits[foil])
    score = task_score(storybook, pairs)
    assert (score.accuracy.value, score.top1) == (right / 10, top / 10) and score.top1 <= 0.7
    assert score.logit_difference.value == pytest.approx(difference / 10, abs=1e-3)


def test_the_own_score_comes_with_intervals(storybook, task):
    pairs = task.pairs(storybook, Corruption.IO, "test", N, seed=0)
    score = task_score(storybook, pairs)
    # all right: the bootstrap sees no uncertainty
    assert (score.accuracy.low, score.accuracy.high) == wilson_interval(N, N)
    assert score.logit_difference.low < score.logit_difference.value < score.logit_difference.high
    assert "95% interval 94.3% to 100.0%" in score.sentence()


def test_an_interval_over_templates_is_the_wider_if_templates_differ():
    """Two templates of which the model does one: half of the prompts are right, and little is known."""
    logits = torch.zeros(40, 2)
    logits[:20, 0], logits[20:, 1] = 1.0, 1.0
    answer, wrong = torch.zeros(40, dtype=torch.long), torch.ones(40, dtype=torch.long)
    by_template = TaskScore.of(logits, answer, wrong, resampled(torch.arange(40) // 20, 0))
    by_prompt = TaskScore.of(logits, answer, wrong, resampled(torch.arange(40), 0))
    assert by_template.accuracy.value == by_prompt.accuracy.value == 0.5
    assert (by_template.accuracy.low, by_template.accuracy.high) == (0.0, 1.0)
    assert 0.3 < by_prompt.accuracy.low < 0.4 and 0.6 < by_prompt.accuracy.high < 0.7


@given(n=st.integers(1, 500), data=st.data())
def test_wilsons_interval_solves_its_equation(n, data):
    """Its ends are the shares p at distance 1.96 sqrt(p (1 - p) / n) from the one seen."""
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    for end in (low, high):
        assert abs(k / n - end) == pytest.approx(1.959964 * (end * (1 - end) / n) ** 0.5, abs=1e-6)
