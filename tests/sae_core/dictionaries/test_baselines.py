"""Untrained dictionaries: exact where complete, and the components that others compute."""

import logging
import sys

import pytest
import torch
from sklearn.decomposition import PCA
from tiny import user_error

from sae_core.dictionaries.baselines import (
    Basis,
    Rectified,
    ica,
    identity_relu,
    neurons,
    nonnegative_pca,
    pca,
    random_basis,
)
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.saes import TopKSAE
from sae_core.evaluation.reconstruction import fvu


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
    basis, reference = pca(x, 5), PCA(5).fit(x.double().numpy())
    cosine = (basis.directions.double() * torch.from_numpy(reference.components_)).sum(-1)
    assert (cosine.abs() - 1).abs().max() < 1e-6
    assert (basis.mean.double() - torch.from_numpy(reference.mean_)).abs().max() < 1e-5
    codes = torch.from_numpy(reference.transform(x.double().numpy())) * cosine.sign()
    assert (basis.encode(x).double() - codes).abs().max() < 1e-4


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


# ---- directions that are only added ----------------------------------------------------------------


def test_nonnegative_pca_is_pca_in_twice_as_many_latents(x):
    for n in (1, 5, 12):
        signed, both = pca(x, n), nonnegative_pca(x, n)
        f = both.encode(x)
        assert both.directions.shape == (2 * n, 12) and (f >= 0).all()
        assert (both.decode(f) - signed.decode(signed.encode(x))).abs().max() < 1e-4
        assert (f[:, 0::2] - f[:, 1::2] - signed.encode(x)).abs().max() < 1e-5
        assert ((f > 0).sum(-1) == n).all()  # of each component, one half


def test_complete_nonnegative_pca_is_exact(x):
    both = nonnegative_pca(x)
    assert (both.decode(both.encode(x)) - x).abs().max() < 1e-4
    half = Rectified(both.directions[::2], both.mean)  # control: the negatives are needed
    assert fvu(x, half.decode(half.encode(x))) > 0.2


def test_identity_relu_loses_what_is_negative_and_nothing_else(x):
    cut = identity_relu(12)
    assert (x < 0).any() and torch.equal(cut.decode(cut.encode(x)), x.relu())
    assert torch.equal(cut.encode(x.abs()), x.abs())


# ---- independent components ------------------------------------------------------------------------


def mixed_sources(n: int = 4000, d_in: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations that mix independent Laplace sources along directions that are not orthogonal; those directions."""
    uniform = torch.rand(n, d_in, generator=generator(5), dtype=torch.float64) - 0.5
    sources = -uniform.sign() * (1 - 2 * uniform.abs()).log()
    directions = torch.nn.functional.normalize(torch.randn(d_in, d_in, generator=generator(6)), dim=-1)
    return (sources.float() @ directions + 3).contiguous(), directions


def test_ica_recovers_independent_sources_and_pca_does_not():
    x, truth = mixed_sources()
    result = ica(x, generator=generator())
    cosine = (truth @ result.directions.T).abs()
    assert (cosine.amax(1) > 0.95).all() and sorted(cosine.argmax(1).tolist()) == list(range(6))
    assert (truth @ pca(x).directions.T).abs().amax(1).min() < 0.9
    gram = result.directions @ result.directions.T - torch.eye(6)
    assert gram.abs().max() > 0.2  # no rotation could have found them


def test_codes_of_ica_are_the_sources():
    """Uncorrelated, as heavy-tailed as what was planted, and in units of the activation."""
    x, _ = mixed_sources()
    f = ica(x, generator=generator()).encode(x).double()
    assert f.mean(0).abs().max() < 1e-4
    covariance = f.T.cov()
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-3 * covariance.max()
    assert ((covariance.diagonal() - 2).abs() < 0.3).all()  # a Laplace source has variance 2
    kurtosis = f.pow(4).mean(0) / f.pow(2).mean(0).pow(2)
    assert (kurtosis > 4.5).all()


def test_complete_ica_is_exact_and_a_part_of_it_is_pca_of_that_size(x):
    whole = ica(x, generator=generator(), iterations=1000)
    assert (whole.decode(whole.encode(x)) - x).abs().max() < 1e-3
    part, strongest = ica(x, 4, generator=generator(), iterations=1000), pca(x, 4)
    assert part.directions.shape == (4, 12)
    x_hat = strongest.decode(strongest.encode(x))
    assert (part.decode(part.encode(x)) - x_hat).abs().max() < 1e-3


def test_ica_depends_on_its_generator_alone():
    x, _ = mixed_sources(500)
    first, again = ica(x, generator=generator(3)), ica(x, generator=generator(3))
    assert torch.equal(first.directions, again.directions)
    assert not torch.equal(first.directions, ica(x, generator=generator(4)).directions)


def test_ica_that_has_not_settled_says_so_and_is_still_exact(x, caplog):
    with caplog.at_level(logging.WARNING):
        result = ica(x, generator=generator(), iterations=1)
    assert "1 iterations" in caplog.text
    assert (result.decode(result.encode(x)) - x).abs().max() < 1e-3
    caplog.clear()
    ica(mixed_sources()[0], generator=generator())
    assert not caplog.text


def test_ica_of_too_few_tokens(x):
    with user_error("12 dimensions", "12 tokens"):
        ica(x[:12], generator=generator())


def test_ica_without_scikit_learn(x, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with user_error("scikit-learn", "pip install scikit-learn"):
        ica(x, generator=generator())


# ---- all of them -----------------------------------------------------------------------------------


def test_all_dictionaries_are_dictionaries(x):
    sae = TopKSAE(12, 24, 3, generator=generator())
    baselines = (nonnegative_pca(x, 3), ica(x, 5, generator=generator(), iterations=1000), identity_relu(12))
    for dictionary in (*bases(x).values(), *baselines, sae):
        assert isinstance(dictionary, Dictionary)
        constant = dictionary.decode(torch.zeros(len(dictionary.directions)))
        f = dictionary.encode(x)
        assert (dictionary.decode(f) - (f @ dictionary.directions + constant)).abs().max() < 1e-4
        assert (dictionary.directions.norm(dim=-1) - 1).abs().max() < 1e-5
    assert not isinstance(torch.nn.Linear(2, 2), Dictionary)
