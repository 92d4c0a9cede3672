"""Erasure: what a linear probe found before, it no longer finds, and nothing else is moved."""

from dataclasses import replace

import pytest
import torch
from handmade import normal
from sklearn.linear_model import LogisticRegression

from editing.erase import fit_leace, mean_difference
from sae_core.sites import Site

SITE, N, D = Site(0), 400, 12


def planted(seed: int = 0, *, shift: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated activations around a mean far from zero; classes of unequal size differ along one direction."""
    labels = (torch.arange(N) % 5 < 2).long()
    mixing = normal(D, D, seed=seed + 1)
    x = normal(N, D, seed=seed) @ mixing + 5 + shift * labels[:, None] * normal(D, seed=seed + 2)
    return x, labels


def probe_accuracy(x: torch.Tensor, labels: torch.Tensor) -> float:
    probe = LogisticRegression(max_iter=1000).fit(x.double().numpy(), labels.numpy())
    return probe.score(x.double().numpy(), labels.numpy())


def apply(erasure, x: torch.Tensor) -> torch.Tensor:
    return erasure(x[:, None])[:, 0]


def class_gap(x: torch.Tensor, labels: torch.Tensor) -> float:
    return (x[labels == 1].mean(0) - x[labels == 0].mean(0)).norm().item()


@pytest.mark.parametrize("seed", range(3))
def test_leace_leaves_a_linear_probe_at_chance_on_its_own_data(seed):
    x, labels = planted(seed)
    majority = max(labels.double().mean().item(), 1 - labels.double().mean().item())
    assert probe_accuracy(x, labels) > 0.95
    assert probe_accuracy(apply(fit_leace(SITE, x, labels), x), labels) == pytest.approx(majority, abs=0.01)
    # control: the other class label, which was not erased, is still there
    other = (x @ normal(D, seed=9) > (x @ normal(D, seed=9)).median()).long()
    assert probe_accuracy(apply(fit_leace(SITE, x, labels), x), other) > 0.8


@pytest.mark.parametrize("fit", [fit_leace, mean_difference])
def test_class_means_are_equal_after(fit):
    x, labels = planted()
    assert class_gap(x, labels) > 1
    erased = apply(fit(SITE, x, labels), x)
    assert class_gap(erased, labels) < 1e-4
    assert (erased - x).norm(dim=-1).mean() > 0.1


@pytest.mark.parametrize("fit", [fit_leace, mean_difference])
def test_an_eraser_is_an_idempotent_map_of_rank_one_around_the_mean(fit):
    x, labels = planted()
    erasure = fit(SITE, x, labels)
    assert torch.allclose(apply(erasure, apply(erasure, x)), apply(erasure, x), atol=1e-4)
    change = (apply(erasure, x) - x).double()
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 1
    assert erasure.left.shape == (D, 1) and erasure.right.shape == (1, D)
    assert torch.allclose(apply(erasure, x.mean(0)[None]), x.mean(0)[None], atol=1e-4)


def test_leace_moves_the_data_less_than_others_that_make_the_class_means_equal():
    """Rivals: other oblique projections along the same direction."""
    x, labels = planted()
    leace = apply(fit_leace(SITE, x, labels), x)
    direction = x[labels == 1].mean(0) - x[labels == 0].mean(0)
    least = (leace - x).pow(2).sum(-1).mean()
    for seed in range(5):
        reader = direction + 0.1 * direction.norm() * normal(D, seed=seed)
        oblique = x - ((x - x.mean(0)) @ reader / (direction @ reader))[:, None] * direction
        assert class_gap(oblique, labels) < 1e-3
        assert (oblique - x).pow(2).sum(-1).mean() > least


def test_mean_difference_is_the_orthogonal_projection():
    x, labels = planted()
    change = apply(mean_difference(SITE, x, labels), x) - x
    direction = x[labels == 1].mean(0) - x[labels == 0].mean(0)
    unit = direction / direction.norm()
    assert torch.allclose(change, -((x - x.mean(0)) @ unit)[:, None] * unit, atol=1e-4)


def test_without_a_difference_leace_changes_next_to_nothing():
    """Control: equal classes, every point once in each."""
    x = normal(N // 2, D).repeat(2, 1)
    labels = (torch.arange(N) < N // 2).long()
    assert (apply(fit_leace(SITE, x, labels), x) - x).abs().max() < 1e-3


@pytest.mark.parametrize("fit", [fit_leace, mean_difference])
def test_a_mask_limits_the_erasure(fit):
    x, labels = planted()
    erasure, h = fit(SITE, x, labels), x[:12].reshape(3, 4, D)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1, 2] = mask[2] = True
    limited = replace(erasure, mask=mask)(h)
    assert torch.equal(limited[~mask], h[~mask])
    assert torch.equal(limited[mask], erasure(h)[mask]) and not torch.equal(limited, h)
