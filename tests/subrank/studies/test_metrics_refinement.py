"""Refined values are the least-squares ones; what is optimal stays, what was shrunk comes back."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from handmade import normal
from random_saes import every_autoencoder, random_sae
from scipy.optimize import nnls

from subrank.studies.metrics.refinement import refined


@pytest.fixture(scope="module")
def sae():
    return random_sae("relu", d_in=12, n_latents=20).requires_grad_(False)


@pytest.fixture(scope="module")
def f():
    chosen = torch.rand(40, 20, generator=torch.Generator().manual_seed(1)).topk(5).indices
    return torch.zeros(40, 20).scatter(1, chosen, 0.5 + normal(40, 5, seed=2).abs())


def test_an_optimal_code_does_not_move(sae, f):
    torch.testing.assert_close(refined(sae, sae.decode(f), f), f, atol=1e-5, rtol=1e-5)


def test_planted_shrinkage_is_undone(sae, f):
    again = refined(sae, sae.decode(f), 0.8 * f)
    torch.testing.assert_close(again, f, atol=1e-3, rtol=1e-3)
    assert (again.sum() / (0.8 * f).sum()).item() == pytest.approx(1 / 0.8, abs=1e-3)


def test_values_are_those_of_nonnegative_least_squares(sae, f):
    x = sae.decode(f) + normal(40, 12, seed=3)
    best = refined(sae, x, f)
    for row in range(40):
        active = f[row] > 0
        exact, _ = nnls(sae.W_dec[active].T.double().numpy(), (x[row] - sae.b_dec).double().numpy())
        assert np.abs(best[row, active].numpy() - exact).max() < 5e-3
    assert (best[f == 0] == 0).all() and (best >= 0).all()
    assert (best != f).any()  # control: there was something to gain


@pytest.mark.parametrize("sae", every_autoencoder(12).values(), ids=every_autoencoder(12))
def test_no_reconstruction_gets_worse_and_codes_below_zero_stay(sae):
    x = normal(30, 12, seed=4)
    f = sae.encode(x)
    best = refined(sae, x, f)
    before, after = ((x - sae.decode(codes)).square().sum(-1) for codes in (f, best))
    assert (after <= before + 1e-4).all()
    assert torch.equal(best[f <= 0], f[f <= 0])
    assert F.relu(best).equal(best) or (f < 0).any()
