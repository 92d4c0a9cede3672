"""Fits of power laws: planted laws come back, flat ones are not read beyond their points, controls are worse."""

import numpy as np
import pytest

from subrank.studies.laws.power_law import JOINT, Form, fit_law, power

SIZES = 2.0 ** np.arange(7, 15)
GPT4 = {"alpha": -0.50, "beta_k": 0.26, "beta_n": -0.017, "gamma": -0.042, "zeta": -1.32, "eta": -0.085}
"""What Gao et al. 2024 (section 3.2) found on GPT-4."""


def noise(n: int, seed: int) -> np.ndarray:
    return 0.01 * np.random.default_rng(seed).standard_normal(n)


@pytest.mark.parametrize(("e", "A", "m"), [(0.1, 3.0, 0.4), (0.02, 1.0, 0.15), (0.0, 2.0, 0.25), (0.0, 1.0, 0.05)])
def test_a_planted_law_comes_back(e, A, m):
    law = fit_law(power("n"), {"n": SIZES}, e + A * SIZES**-m, draws=20, seed=0).law
    assert law.exponents[0].value == pytest.approx(m, rel=0.02) and law.r2 > 1 - 1e-6
    assert np.exp(law.coefficients["alpha"].value) == pytest.approx(A, rel=0.02)
    assert (law.irreducible is None) == (e == 0) and law.extends
    if law.irreducible:
        assert law.irreducible.value == pytest.approx(e, rel=0.02)


@pytest.mark.parametrize(("e", "A", "m"), [(0.1, 3.0, 0.4), (0.0, 2.0, 0.25)])
def test_under_noise_the_truth_lies_within_the_interval(e, A, m):
    """Of eight intervals of 95% two may miss: of the exponent, and of the loss read at four times the size."""
    inside, read = [], []
    for seed in range(8):
        fit = fit_law(power("n"), {"n": SIZES}, (e + A * SIZES**-m) * np.exp(noise(8, seed)), draws=500, seed=0)
        assert fit.law.exponents[0].value == pytest.approx(m, rel=0.35)
        inside.append(not fit.law.exponents[0].excludes(m))
        far = 4 * SIZES[-1:]
        predicted = fit.beyond({"n": far})
        read.append(predicted is not None and not predicted.excludes(float((e + A * far**-m)[0])))
    assert sum(inside) >= 6 and sum(read) >= 6


def test_many_points_give_the_exponent_to_five_percent_under_noise():
    n = np.tile(SIZES, 5)
    law = fit_law(power("n"), {"n": n}, (0.1 + 3 * n**-0.4) * np.exp(noise(40, 1)), draws=20, seed=0).law
    assert law.exponents[0].value == pytest.approx(0.4, rel=0.05) and law.irreducible is not None
    assert law.p_irreducible < 1e-6


def test_the_joint_law_comes_back_from_a_grid():
    n, k = (each.ravel() for each in np.meshgrid(2.0 ** np.arange(11, 21, 2), [8.0, 32.0, 128.0, 512.0]))
    x = {"n": n, "k": k}
    loss = np.exp(JOINT[1].log_loss(np.array([*GPT4.values()]), x))
    exact = fit_law(JOINT, x, loss, draws=20, seed=0).law
    assert {name: value.value for name, value in exact.coefficients.items()} == pytest.approx(GPT4, rel=0.02)
    assert exact.shuffled_r2.high < exact.r2 - 0.01 and exact.at(x) == pytest.approx(loss)
    noisy = fit_law(JOINT, x, loss * np.exp(noise(20, 0)), draws=100, seed=0).law
    inside = [not noisy.coefficients[name].excludes(value) for name, value in GPT4.items()]
    assert sum(inside) >= 5 and noisy.r2 > 0.99  # of six intervals of 95%


def test_the_constants_of_the_joint_law_give_the_losses_that_they_should():
    x = {"n": 2.0 ** np.array([15, 20, 24, 24]), "k": np.array([32.0, 32.0, 32.0, 512.0])}
    losses = np.exp(JOINT[1].log_loss(np.array([*GPT4.values()]), x))
    assert losses == pytest.approx([0.474, 0.356, 0.299, 0.187], abs=1e-3)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_a_flat_law_is_not_read_beyond_its_points(seed):
    loss = 0.3 * np.exp(noise(8, seed) if seed is not None else np.zeros(8))
    fit = fit_law(power("n"), {"n": SIZES}, loss, draws=500, seed=0)
    assert not fit.law.extends and fit.beyond({"n": np.array([1e6])}) is None


def test_without_a_degree_of_freedom_there_is_no_interval_and_nothing_is_read_beyond():
    fit = fit_law(power("n")[:1], {"n": SIZES[:2]}, np.array([0.5, 0.4]), draws=20, seed=0)
    assert fit.law.r2 == pytest.approx(1) and np.isnan(fit.law.exponents[0].low) and not fit.law.extends


def test_with_sizes_shuffled_a_law_explains_less():
    law = fit_law(power("n"), {"n": SIZES}, 3 * SIZES**-0.3 * np.exp(noise(8, 0)), draws=20, seed=0).law
    assert law.r2 > 0.99 and law.shuffled_r2.value < 0.4
    assert law.shuffled_exponent.low < 0 < law.shuffled_exponent.high < law.exponents[0].low + 0.1


def test_noise_that_a_group_shares_makes_intervals_wider():
    """Of ten points a group, all of them off by the same: as many as there are groups count, not as many points."""
    n, groups = np.repeat(SIZES, 10), [str(i // 10) for i in range(80)]
    loss = n**-0.3 * np.exp(np.repeat(noise(8, 3), 10))
    apart, together = (
        fit_law(power("n")[:1], {"n": n}, loss, draws=200, seed=0, groups=each).law.exponents[0]
        for each in (None, groups)
    )
    assert together.high - together.low > 1.5 * (apart.high - apart.low) and not together.excludes(0.3)


def test_a_form_is_the_logarithm_of_a_sum():
    form = Form("1 n kn | k", ("a", "b", "c", "d"))
    x = {"n": np.array([2.0, 3.0]), "k": np.array([5.0, 7.0])}
    a, b, c, d = 0.1, -0.2, 0.3, 0.4
    by_hand = np.exp(a + b * np.log(x["n"]) + c * np.log(x["n"]) * np.log(x["k"])) + np.exp(d * np.log(x["k"]))
    assert np.exp(form.log_loss(np.array([a, b, c, d]), x)) == pytest.approx(by_hand)
