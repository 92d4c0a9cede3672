"""Least squares by sums of products are least squares; scores are R^2; and each has its control."""

import pytest
import torch
from handmade import normal

from sae_core.seeds import generator_for
from subrank.studies.errors.regression import (
    LeastSquares,
    Regressions,
    Scores,
    TokenMeans,
    context_weights,
    estimate,
)

X, W = normal(400, 7) + 3, normal(7, 4, seed=1)
Y = X @ W - 2 + 0.3 * normal(400, 4, seed=2)


def sums_of(x: torch.Tensor, y: torch.Tensor, rows: int = 64) -> LeastSquares:
    sums = LeastSquares()
    for part in zip(x.split(rows), y.split(rows), strict=True):
        sums.add(*part)
    return sums


def r2(y: torch.Tensor, y_hat: torch.Tensor) -> float:
    return (1 - (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()).item()


def test_batches_of_sums_give_what_lstsq_gives():
    wide, ones = X.double(), torch.ones(400, 1).double()
    sums = sums_of(X, Y)
    through_zero = torch.linalg.lstsq(wide, Y.double()).solution
    *weight, bias = torch.linalg.lstsq(torch.cat([wide, ones], 1), Y.double()).solution
    torch.testing.assert_close(sums.fit(intercept=False).weight, through_zero, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(sums.fit().weight, torch.stack(weight), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(sums.fit().bias, bias, rtol=1e-8, atol=1e-10)
    for fit in (sums.fit(), sums.fit(intercept=False)):
        assert sums.r2(fit, slice(0, 4)) == pytest.approx(r2(Y.double(), fit(X)), abs=1e-10)


def test_columns_that_say_the_same_share_their_weight_and_constant_ones_have_none():
    twice = torch.cat([X, X, torch.full((400, 1), 5.0)], 1)
    weight = sums_of(twice, Y).fit().weight
    torch.testing.assert_close(weight[:7], weight[7:14], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight[:7] + weight[7:14], sums_of(X, Y).fit().weight, rtol=1e-4, atol=1e-6)
    assert not weight[14].any()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_do_not_matter(scale):
    units = torch.tensor([scale, 1, 1, 1, 1, 1, 1])
    torch.testing.assert_close(sums_of(X * units, Y).fit()(X * units), sums_of(X, Y).fit()(X), rtol=1e-4, atol=1e-4)


def test_one_factor_and_a_mean_is_the_best_of_those():
    y = 0.25 * X + 1
    fit = sums_of(X, y).rescaling(slice(0, 7))
    torch.testing.assert_close(fit(X).float(), y, rtol=1e-5, atol=1e-5)
    with_noise = sums_of(X, y + normal(400, 7, seed=3)).rescaling(slice(0, 7)).weight[0, 0].item()
    assert with_noise == pytest.approx(0.25, abs=0.1)


def test_random_vectors_have_the_mean_and_covariance_and_predict_nothing():
    x = normal(4000, 3) @ normal(3, 3, seed=1) + 2
    drawn = sums_of(x, x).gaussian().draw(4000, generator_for(0))
    torch.testing.assert_close(drawn.mean(0), x.mean(0), rtol=0, atol=0.2)
    torch.testing.assert_close(drawn.T.cov(), x.T.cov(), rtol=0.1, atol=0.2)
    fit = sums_of(drawn[:2000], x[:2000]).fit()
    assert r2(x[2000:], fit(drawn[2000:]).float()) < 0.01


def test_scores_are_r2_and_intervals_are_those_of_contexts():
    contexts, y_hat = torch.arange(400) // 20, X @ W - 2
    scores = Scores(context_weights(20, 0))
    for rows in torch.arange(400).split(90):  # a context in two batches
        scores.add("y", contexts[rows], Y[rows], {"map": y_hat[rows], "mean": Y.mean(0).expand(len(rows), -1)})
    score = estimate(scores.r2("y", "map"))
    assert score.value == pytest.approx(r2(Y, y_hat), abs=1e-5) and score.low < score.value < score.high
    dimensions = [r2(Y[:, [i]], y_hat[:, [i]]) for i in range(4)]
    assert scores.r2_of_dimensions("y", "map") == pytest.approx(sum(dimensions) / 4, abs=1e-5)
    assert scores.r2("y", "mean")[0].item() == pytest.approx(0, abs=1e-6)  # control


def test_several_targets_of_several_predictors_keep_apart():
    regressions = Regressions(("x",))
    targets = {"y": Y, "first": Y[:, :1]}
    designs = {"x": (X, targets), "noise": (normal(400, 2, seed=5), {"first": Y[:, :1]})}
    regressions.add(designs)
    regressions.solve()
    table = regressions.predictions(designs)
    assert table["y"][1].keys() == {"x", "x, no intercept"} and table["first"][1].keys() == {*table["y"][1], "noise"}
    torch.testing.assert_close(table["first"][1]["x"], table["y"][1]["x"][:, :1])
    assert regressions.r2("x", "y") > 0.95 > 0.1 > regressions.r2("noise", "first")
    assert regressions.r2("x, no intercept", "y") < regressions.r2("x", "y")


def test_a_token_that_was_not_seen_has_the_mean_of_all():
    means = TokenMeans(torch.tensor([9, 4]))
    means.add(torch.tensor([4, 9, 4]), torch.tensor([[1.0], [6.0], [2.0]]))
    assert means.predict(torch.tensor([9, 4, 5, 100])).tolist() == [[6.0], [1.5], [3.0], [3.0]]
