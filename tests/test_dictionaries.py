"""Orthonormal dictionaries: exact where complete, and the components that others compute."""

import pytest
import torch
from sklearn.decomposition import PCA

from sae_core.dictionaries import Basis, Dictionary, neurons, pca, random_basis
from sae_core.measures import fvu
from sae_core.saes import TopKSAE


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x():
    """Correlated activations with a mean far from zero."""
    mixing = torch.randn(12, 12, generator=generator(1))
    return torch.randn(300, 12, generator=generator()) @ mixing + 5


def bases(x) -> dict[str, Basis]:
    return {"pca": pca(x), "neurons": neurons(12), "random": random_basis(12, generator=generator(2))}


def test_complete_bases_reconstruct_exactly(x):
    for name, basis in bases(x).items():
        assert (basis.decode(basis.encode(x)) - x).abs().max() < 1e-4, name
        assert basis.encode(x[:, None].expand(-1, 3, -1)).shape == (300, 3, 12)


def test_directions_are_orthonormal(x):
    for name, basis in bases(x).items():
        assert (basis.directions @ basis.directions.T - torch.eye(12)).abs().max() < 1e-5, name


def test_pca_agrees_with_sklearn_up_to_sign(x):
    ours, theirs = pca(x, 5), PCA(5).fit(x.double().numpy())
    cosine = (ours.directions.double() * torch.from_numpy(theirs.components_)).sum(-1)
    assert (cosine.abs() - 1).abs().max() < 1e-6
    assert (ours.mean.double() - torch.from_numpy(theirs.mean_)).abs().max() < 1e-5
    codes = torch.from_numpy(theirs.transform(x.double().numpy())) * cosine.sign()
    assert (ours.encode(x).double() - codes).abs().max() < 1e-4


def test_pca_leaves_the_smallest_variances_and_no_other_basis_does_as_well(x):
    variance = torch.linalg.eigvalsh(x.double().T.cov()).flip(0)
    for n in (1, 4, 11):
        part = pca(x, n)
        assert part.directions.shape == (n, 12)
        assert fvu(x, part.decode(part.encode(x))) == pytest.approx(
            (variance[n:].sum() / variance.sum()).item(), abs=1e-6
        )
        other = Basis(random_basis(12, generator=generator(n)).directions[:n], part.mean)
        assert fvu(x, other.decode(other.encode(x))) > fvu(x, part.decode(part.encode(x))) + 0.01


def test_codes_of_principal_components_are_centred_and_uncorrelated(x):
    f = pca(x).encode(x).double()
    assert f.mean(0).abs().max() < 1e-4
    covariance = f.T.cov()
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-3 * covariance.max()
    assert (covariance.diagonal().diff() <= 0).all()  # the strongest first


def test_neurons_are_the_identity(x):
    assert torch.equal(neurons(12).encode(x), x)
    assert torch.equal(neurons(12).decode(x), x)


def test_a_random_basis_depends_on_its_generator_alone():
    before = torch.get_rng_state()
    a, b = random_basis(8, generator=generator(3)), random_basis(8, generator=generator(3))
    assert torch.equal(a.directions, b.directions)
    assert not torch.equal(a.directions, random_basis(8, generator=generator(4)).directions)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_random_basis_has_no_favourite_direction():
    """Uniform: every entry has mean 0 and variance 1/d; without the sign correction the diagonal would not."""
    many = torch.stack([random_basis(4, generator=generator(i)).directions for i in range(2000)])
    assert many.mean(0).abs().max() < 5 * 0.5 / 2000**0.5
    assert (many.pow(2).mean(0) - 0.25).abs().max() < 0.03


def test_all_dictionaries_are_dictionaries(x):
    sae = TopKSAE(12, 24, 3, generator=generator())
    for dictionary in (*bases(x).values(), sae):
        assert isinstance(dictionary, Dictionary)
        constant = dictionary.decode(torch.zeros(len(dictionary.directions)))
        f = dictionary.encode(x)
        assert (dictionary.decode(f) - (f @ dictionary.directions + constant)).abs().max() < 1e-4
        assert (dictionary.directions.norm(dim=-1) - 1).abs().max() < 1e-5
    assert not isinstance(torch.nn.Linear(2, 2), Dictionary)
