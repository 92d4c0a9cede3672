"""Fragments are those that were asked for, and scores are what their formulas say."""

import math

import numpy as np
import pytest
import torch
from handmade import normal
from planted import generator

from subrank.studies.simulating.fragments import ANY, RANDOM, SILENT, TOP, Examples, choose, fragments_of
from subrank.studies.simulating.simulation import Predictions, Trial, balanced_accuracy, scores, trial, unanswered

GROUPS = (TOP, TOP, RANDOM, ANY, SILENT, SILENT)


def examples(activation: torch.Tensor, groups: tuple[str, ...] = GROUPS) -> Examples:
    tokens = torch.arange(activation.numel()).view(activation.shape)
    return Examples(tokens, torch.ones_like(tokens, dtype=torch.bool), activation, groups)


def predicted(activation: torch.Tensor, n_texts: int = 5, n_marks: int = 6) -> Predictions:
    return Predictions(activation, torch.full((n_texts,), 0.7), torch.full((n_marks,), 0.2))


# ---- scores ----------------------------------------------------------------------------------------


def test_correlations_are_pearsons_over_concatenated_tokens():
    true, simulated = normal(6, 7).relu(), normal(4, 7, seed=1)
    content = torch.rand(6, 7, generator=generator()) < 0.8
    chosen = Examples(torch.zeros(6, 7, dtype=torch.long), content, true, GROUPS)
    measured = scores(Trial(chosen, torch.zeros(6, 7, dtype=torch.bool)), predicted(simulated))
    for name, rows in (("top", [0, 1]), ("random", [2]), ("top_and_random", [0, 1, 2]), ("all", [0, 1, 2, 3])):
        mask = content[rows].numpy()
        expected = np.corrcoef(simulated[rows].numpy()[mask], true[rows].numpy()[mask])[0, 1]
        assert getattr(measured, name) == pytest.approx(expected, abs=1e-6), name
    by_record = np.mean([np.corrcoef(simulated[row][content[row]], true[row][content[row]])[0, 1] for row in (0, 1, 2)])
    assert abs(measured.top_and_random - by_record) > 1e-3  # control: not a mean over fragments


def test_what_does_not_vary_correlates_0_and_says_so():
    true = normal(6, 7).relu()
    flat = scores(Trial(examples(true), torch.zeros(6, 7, dtype=torch.bool)), predicted(torch.ones(4, 7)))
    assert flat.top_and_random == 0 and flat.constant
    varied = scores(Trial(examples(true), torch.zeros(6, 7, dtype=torch.bool)), predicted(true[:4]))
    assert varied.top_and_random == pytest.approx(1) and not varied.constant and varied.precision == varied.recall == 1


def test_fragments_without_an_answer_are_left_out_and_counted():
    true = normal(6, 7).relu()
    simulated = true[:4].clone()
    simulated[1] = torch.nan
    measured = scores(Trial(examples(true), torch.zeros(6, 7, dtype=torch.bool)), predicted(simulated))
    assert measured.all == pytest.approx(1) and measured.unanswered == pytest.approx(1 / 15)


def test_no_explanation_scores_nothing():
    tried = trial(examples(normal(6, 7).relu() + 0.1), generator())
    nothing = scores(tried, unanswered(tried))
    assert (nothing.top_and_random, nothing.all, nothing.detection, nothing.fuzzing) == (0, 0, 0.5, 0.5)
    assert nothing.unanswered == 1 and nothing.constant


def test_balanced_accuracy_weighs_both_kinds_alike():
    truth = torch.tensor([True, True, True, True, False])
    assert balanced_accuracy(torch.tensor([0.9, 0.8, 0.7, 0.1, 0.2]), truth) == pytest.approx((3 / 4 + 1) / 2)
    assert balanced_accuracy(torch.ones(5), truth) == 0.5  # control: to say yes always
    assert balanced_accuracy(torch.tensor([math.nan, 0.8, 0.7, 0.1, 0.2]), truth) == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(balanced_accuracy(torch.ones(5), torch.ones(5, dtype=torch.bool)))


def test_marks_are_the_active_tokens_and_as_many_others():
    activation = torch.zeros(6, 10)
    activation[0, 3], activation[1, 4], activation[1, 5], activation[2, 6] = 10.0, 5.0, 2.0, 1.0
    tried = trial(examples(activation), generator())
    right, wrong = tried.marked[:3], tried.marked[3:]
    assert right.nonzero().tolist() == [[0, 3], [1, 4], [2, 6]]  # 2 is below 0.3 * 10, 1 is the most of its fragment
    assert wrong.sum(1).tolist() == [1, 1, 1] and not (wrong & right).any()
    assert torch.equal(tried.fuzzed.activation, activation[[0, 1, 2, 0, 1, 2]])


# ---- fragments -------------------------------------------------------------------------------------


def test_groups_hold_what_they_say():
    activation = torch.zeros(60, 4)
    activation[:20, 1] = torch.arange(20.0) + 1
    pieces = fragments_of(torch.arange(240).view(60, 4), torch.ones(60, 4, dtype=torch.bool), 4)
    chosen = choose(pieces, pieces.of(activation), 5, generator())
    peaks = {group: chosen.of(group).activation.amax(1).tolist() for group in (TOP, RANDOM, ANY, SILENT)}
    assert peaks[TOP] == [20, 19, 18, 17, 16] and peaks[SILENT] == [0] * 10
    assert len(peaks[RANDOM]) == len(peaks[ANY]) == 5 and min(peaks[RANDOM]) > 0 and max(peaks[RANDOM]) <= 15
    assert 0 in peaks[ANY]
    taken = chosen.of(TOP, RANDOM, ANY).tokens
    assert len(taken.unique(dim=0)) == 15
    few = choose(pieces, pieces.of(activation * (activation > 17)), 5, generator())
    assert [few.groups.count(group) for group in (TOP, RANDOM)] == [2, 1]


def test_no_fragment_stands_in_the_text_that_was_seen():
    """Anywhere in it, also across its own fragments; and none is there twice."""
    seen = torch.arange(20).view(1, 20)
    contexts = torch.tensor([[3, 4, 5, 6, 70, 71, 72, 73, 9], [70, 71, 72, 73, 80, 81, 82, 83, 9]])
    content = torch.ones_like(contexts, dtype=torch.bool)
    kept = fragments_of(contexts, content, 4, seen=seen)
    assert kept.tokens.tolist() == [[70, 71, 72, 73], [80, 81, 82, 83]]
    assert torch.equal(kept.of(contexts.float()), kept.tokens.float())
    assert len(fragments_of(contexts, content, 4).tokens) == 3  # control
