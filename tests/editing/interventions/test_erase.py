"""Erasure: what a linear probe found before, it no longer finds, and nothing else is moved."""

from dataclasses import replace

import pytest
import torch
from handmade import normal, random_topk
from sklearn.linear_model import LogisticRegression
from tiny import random_tokens, user_error

from editing.interventions.add_direction import AddDirection
from editing.interventions.erase import fit_leace, mean_difference, orthogonal, project_out
from editing.interventions.patch import ablate
from sae_core.sites import Site, Stream

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
    means = torch.stack([x[labels == label].double().mean(0) for label in labels.unique()])
    return (means - means[:1]).abs().max().item()


def three_classes(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """As `planted`; the means of three classes of unequal size span a plane."""
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 2]).repeat(N // 7)
    x = normal(len(labels), D, seed=seed) @ normal(D, D, seed=seed + 1) + 5
    return x + 3 * normal(3, D, seed=seed + 2)[labels], labels


FITS = pytest.mark.parametrize("fit", [fit_leace, orthogonal, mean_difference])


# ---- a concept -------------------------------------------------------------------------------------


def closed_form(x: torch.Tensor, labels: torch.Tensor, cov: torch.Tensor) -> torch.Tensor:
    """LEACE of Belrose et al. 2023: whiten, project out the cross-covariance, unwhiten."""
    values, vectors = torch.linalg.eigh(cov)
    whiten, unwhiten = (vectors * values**power @ vectors.T for power in (-0.5, 0.5))
    z = torch.nn.functional.one_hot(labels).double()
    cross = whiten @ (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)
    onto = cross @ torch.linalg.pinv(cross, rtol=1e-9)
    return x - (x - x.mean(0)) @ (unwhiten @ onto @ whiten).T


@pytest.mark.parametrize("data", [planted, three_classes])
@pytest.mark.parametrize("seed", range(3))
def test_leace_is_its_closed_form(data, seed):
    from concept_erasure.shrinkage import optimal_linear_shrinkage

    x, labels = data(seed)
    x = x.double()
    cov = (x - x.mean(0)).T @ (x - x.mean(0)) / len(x)
    expected = closed_form(x, labels, optimal_linear_shrinkage(cov, len(x)))
    erased = apply(fit_leace(SITE, x, labels), x)
    assert (erased - expected).abs().max() < 1e-9 * x.abs().max()
    # with the plain covariance no map moves these data less; the shrunk estimate costs a little here
    plain = closed_form(x, labels, cov)
    assert 1 <= (expected - x).pow(2).sum() / (plain - x).pow(2).sum() < 1.1
    # control: without whitening it is another projection, which moves the data more
    unwhitened = closed_form(x, labels, torch.eye(D).double())
    assert (unwhitened - expected).abs().max() > 0.1
    assert (unwhitened - apply(orthogonal(SITE, x, labels), x)).abs().max() < 1e-9
    assert (unwhitened - x).pow(2).sum() > (expected - x).pow(2).sum()


@pytest.mark.parametrize("fit", [fit_leace, orthogonal])
@pytest.mark.parametrize("seed", range(3))
def test_three_classes_lose_all_that_tells_them_apart(fit, seed):
    x, labels = three_classes(seed)
    majority = (labels == 2).double().mean().item()
    erasure = fit(SITE, x, labels)
    assert erasure.left.shape == (D, 2)
    assert probe_accuracy(x, labels) > 0.9 and class_gap(x, labels) > 1  # control
    assert probe_accuracy(apply(erasure, x), labels) == pytest.approx(majority, abs=0.01)
    assert class_gap(apply(erasure, x), labels) < 1e-5


def test_a_mean_difference_is_the_orthogonal_projection_for_two_classes():
    x, labels = planted()
    assert torch.equal(apply(mean_difference(SITE, x, labels), x), apply(orthogonal(SITE, x, labels), x))
    for same in (labels.bool(), labels + 3, 1 - labels):
        for fit in (fit_leace, orthogonal, mean_difference):
            assert torch.allclose(apply(fit(SITE, x, same), x), apply(fit(SITE, x, labels), x), atol=1e-4)


@FITS
def test_a_rare_and_weak_concept_is_erased_too(fit):
    """Where concept-erasure's own cut-off lets it stay."""
    from concept_erasure import LeaceFitter

    labels = (torch.arange(4000) < 4).long()
    x = normal(4000, D)
    x[4:] -= x[4:].mean(0)
    x[:4] += 0.05 - x[:4].mean(0)
    assert class_gap(x, labels) > 0.04
    assert class_gap(apply(fit(SITE, x, labels), x), labels) < 1e-5
    stock = LeaceFitter.fit(x.double(), labels.double()).eraser  # control
    assert class_gap(stock(x.double()), labels) > 0.04


@FITS
def test_what_cannot_be_fitted_is_refused(fit):
    x, labels = planted()
    with user_error("two classes"):
        fit(SITE, x, torch.ones_like(labels))
    with user_error("399 labels", "400 activations"):
        fit(SITE, x, labels[1:])
    with user_error("two classes", "3"):
        mean_difference(SITE, *three_classes())


@FITS
def test_an_erased_model_has_equal_class_means_at_the_site_and_no_difference_below(fit, tiny):
    tokens = random_tokens(tiny.n_vocab, 60, 5)
    site, labels = Site(1, Stream.MLP_OUT), (torch.arange(60) % 3 == 0).long()
    x = tiny.record(tokens, [site])[site][:, -1] + labels[:, None] * normal(32)
    shifted = torch.cat([torch.zeros(60, 4, 32), (labels[:, None] * normal(32))[:, None]], 1)
    with tiny.hooks(AddDirection(site, shifted), fit(site, x, labels)):
        recorded = tiny.record(tokens, [site, Site(0)])
    assert class_gap(recorded[site][:, -1], labels) < 1e-4 < 0.1 < class_gap(x, labels)
    assert torch.equal(recorded[Site(0)], tiny.record(tokens, [Site(0)])[Site(0)])


# ---- a subspace ------------------------------------------------------------------------------------


def test_a_subspace_is_projected_out_and_nothing_else():
    directions, h = normal(3, D), 5 * normal(2, 7, D, seed=1)
    projected = project_out(SITE, directions)(h)
    assert (projected @ directions.T).abs().max() < 1e-4 < (h @ directions.T).abs().max()
    across = torch.linalg.svd(directions).Vh[3:]  # all that is orthogonal to them
    assert torch.allclose(projected @ across.T, h @ across.T, atol=1e-4)
    assert torch.allclose(project_out(SITE, directions)(projected), projected, atol=1e-4)


@pytest.mark.parametrize("sized", [1e-3, 1.0, 1e3])
def test_only_the_span_of_the_directions_matters(sized):
    """Not their lengths, how many there are, or whether they depend on each other."""
    directions, h = normal(3, D), 5 * normal(2, 7, D, seed=1)
    expected = project_out(SITE, directions)
    mixed = sized * torch.cat([directions, normal(30, 3, seed=2) @ directions, torch.zeros(1, D)])
    eraser = project_out(SITE, mixed)
    assert eraser.right.shape == expected.right.shape == (3, D)
    assert torch.allclose(eraser(h), expected(h), atol=1e-3)
    assert torch.allclose(eraser.right @ eraser.right.T, torch.eye(3), atol=1e-5)
    assert (project_out(SITE, mixed[:2])(h) - expected(h)).abs().max() > 0.1  # control


def test_no_direction_takes_out_nothing_and_a_complete_set_everything():
    h, mean = 5 * normal(2, 7, D), normal(D, seed=1)
    for nothing in (torch.zeros(0, D), torch.zeros(2, D)):
        assert torch.equal(project_out(SITE, nothing)(h), h)
    assert project_out(SITE, normal(D, D))(h).abs().max() < 1e-4
    assert torch.allclose(project_out(SITE, normal(2 * D, D), mean=mean)(h), mean.expand_as(h), atol=1e-4)


def test_a_features_direction_projected_out_is_the_full_rank_one_edit():
    """x - (x . f) f, as against an ablation, which takes out what the feature contributes."""
    sae, h = random_topk(D, 30, 4), 5 * normal(2, 7, D)
    f = sae.directions[3]
    projected = project_out(SITE, sae.directions[3:4])(h)
    assert torch.allclose(projected, h - (h @ f)[..., None] * f, atol=1e-5)
    assert (projected - h).norm(dim=-1).min() > 0 == (ablate(SITE, sae, [3])(h) - h).norm(dim=-1).min()


@pytest.mark.parametrize("seed", range(3))
def test_leace_leaves_a_linear_probe_at_chance_on_its_own_data(seed):
    x, labels = planted(seed)
    majority = max(labels.double().mean().item(), 1 - labels.double().mean().item())
    assert probe_accuracy(x, labels) > 0.95
    assert probe_accuracy(apply(fit_leace(SITE, x, labels), x), labels) == pytest.approx(majority, abs=0.01)
    # control: the other class label, which was not erased, is still there
    other = (x @ normal(D, seed=9) > (x @ normal(D, seed=9)).median()).long()
    assert probe_accuracy(apply(fit_leace(SITE, x, labels), x), other) > 0.8


@FITS
@pytest.mark.parametrize("seed", range(3))
def test_class_means_are_equal_after(fit, seed):
    x, labels = planted(seed)
    assert class_gap(x, labels) > 1
    erased = apply(fit(SITE, x, labels), x)
    assert class_gap(erased, labels) < 1e-5
    assert (erased - x).norm(dim=-1).mean() > 0.1


@FITS
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


@FITS
def test_without_a_difference_nothing_is_changed(fit):
    """Control: equal classes, every point once in each."""
    x = normal(N // 2, D).repeat(2, 1)
    labels = (torch.arange(N) < N // 2).long()
    assert torch.equal(apply(fit(SITE, x, labels), x), x)


@FITS
def test_a_mask_limits_the_erasure(fit):
    x, labels = planted()
    erasure, h = fit(SITE, x, labels), x[:12].reshape(3, 4, D)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1, 2] = mask[2] = True
    limited = replace(erasure, mask=mask)(h)
    assert torch.equal(limited[~mask], h[~mask])
    assert torch.equal(limited[mask], erasure(h)[mask]) and not torch.equal(limited, h)
