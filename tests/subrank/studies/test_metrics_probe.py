"""Probe loss: a planted latent is chosen and does as well held out; by shuffled labels nothing is learnt."""

from dataclasses import replace

import pytest
import torch
from handmade import normal
from sklearn.linear_model import LogisticRegression

from editing.metrics import resampled
from subrank.studies.metrics.probe import RIDGE, Labels, entropies, fit, nats, probe
from subrank.studies.metrics.reading import Rows

PLANTED = 7


def labels(x: torch.Tensor, *true: torch.Tensor) -> Labels:
    rows = Rows(x, torch.arange(len(x)) % 10, resampled(range(10), 0))
    every = torch.stack(true)
    return Labels(tuple(map(str, range(len(true)))), rows, every, torch.ones_like(every))


def planted(n: int, seed: int) -> Labels:
    """Two questions: one that column `PLANTED` answers but for noise, one by a coin; the noise is shared by none."""
    x = normal(n, 200, seed=seed)
    noise = normal(n, seed=seed + 100)
    return labels(x, 2 * x[:, PLANTED] + noise > 1, normal(n, seed=seed + 200) > 0.5)


def test_newton_finds_what_scikit_learn_does():
    z = normal(300, 6)
    y = (z[:, 0] + 0.5 * normal(300, seed=1) > 0.7).float()
    w, b = fit(z, y)
    for column in range(6):
        exact = LogisticRegression(C=1 / (RIDGE * 300), tol=1e-8).fit(z[:, [column]].numpy(), y.numpy())
        assert w[column].item() == pytest.approx(exact.coef_.item(), abs=1e-3)
        assert b[column].item() == pytest.approx(exact.intercept_.item(), abs=1e-3)


def test_a_column_that_tells_everything_has_finite_weights():
    z = torch.cat([normal(200, 1), 1000 * normal(200, 1, seed=1)], 1)
    y = (z[:, 0] > 0).float()
    w, b = fit(z / z.std(0), y)
    assert torch.isfinite(w).all() and torch.isfinite(b).all()
    assert nats(z / z.std(0), y, w, b).mean(0)[0] < 0.05


def test_the_planted_latent_is_chosen_and_a_coin_is_not_told():
    training, held = planted(2000, 0), planted(2000, 1)
    probed, alone = probe(lambda x: x, training, held), entropies(training, held)
    assert probed.column[0] == PLANTED
    assert probed.loss[0] < alone[0] - 0.2
    assert probed.loss[1] == pytest.approx(alone[1], abs=0.02)  # control: the best of 200 by chance


def test_shuffled_labels_leave_the_entropy():
    training, held = planted(2000, 0), planted(2000, 1)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    shuffled = replace(training, true=training.true[:, order])
    probed, alone = probe(lambda x: x, shuffled, held), entropies(shuffled, held)
    assert probed.loss[0] == pytest.approx(alone[0], abs=0.02)


def test_tokens_that_a_question_is_not_asked_of_have_no_say():
    training, held = planted(1000, 0), planted(500, 1)
    inside = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0)) < 0.5
    both = [replace(training, asked=inside, true=training.true ^ (~inside & flip)) for flip in (False, True)]
    first, second = (probe(lambda x: x, each, held) for each in both)
    assert torch.equal(first.column, second.column) and first.column[0] == PLANTED
    torch.testing.assert_close(first.loss, second.loss)
