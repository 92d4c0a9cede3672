"""TopK autoencoders: k latents, unit directions, and gradients that go where they are told."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import user_error

from sae_core.measures import fvu, l0
from sae_core.objectives import topk_objective
from sae_core.saes import TopKSAE

D_IN, N_LATENTS, K = 8, 24, 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def random_sae(seed: int = 0, *, n_latents: int = N_LATENTS, k: int = K) -> TopKSAE:
    """A dictionary whose encoder and biases are anything, as in the middle of training."""
    sae = TopKSAE(D_IN, n_latents, k, generator=generator(seed))
    with torch.no_grad():
        sae.W_enc += 0.3 * normal(D_IN, n_latents, seed=seed + 1)
        sae.b_enc += 0.3 * normal(n_latents, seed=seed + 2)
        sae.b_dec += normal(D_IN, seed=seed + 3)
    return sae


# ---- codes -----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, N_LATENTS))
def test_codes_are_the_k_largest_where_positive(seed, k):
    sae, x = random_sae(seed, k=k), normal(5, D_IN, seed=seed)
    f, pre = sae.encode(x), (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    assert (f >= 0).all() and ((f > 0).sum(-1) <= k).all()
    assert l0(f) <= k
    for row, own in zip(f, pre, strict=True):
        largest = own.topk(k).indices
        expected = torch.zeros(N_LATENTS).index_put((largest,), own[largest].relu())
        assert torch.allclose(row, expected, atol=1e-5)


def test_l0_can_be_smaller_than_k():
    sae = random_sae()
    with torch.no_grad():
        sae.b_enc.fill_(-100)
    assert l0(sae.encode(normal(5, D_IN))) == 0
    with torch.no_grad():
        sae.b_enc.fill_(100)
    assert l0(sae.encode(normal(5, D_IN))) == K


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6))
def test_a_code_does_not_depend_on_its_neighbours(seed, place):
    sae, x = random_sae(seed), normal(7, D_IN, seed=seed)
    alone, among = sae.encode(x[place]), sae.encode(x)[place]
    assert torch.allclose(alone, among, atol=1e-5)
    other = torch.cat([x[place : place + 1], 100 * normal(3, D_IN, seed=seed + 1)])
    assert torch.allclose(sae.encode(other)[0], among, atol=1e-5)
    assert torch.allclose(sae.encode(x[None])[0], sae.encode(x), atol=1e-5)


def test_decode_is_affine_in_the_directions():
    sae, f = random_sae(), normal(4, N_LATENTS)
    assert torch.allclose(sae.decode(f), f @ sae.W_dec + sae.b_dec)
    assert sae.directions is sae.W_dec
    assert torch.equal(sae.decode(torch.zeros(N_LATENTS)), sae.b_dec)


@pytest.mark.parametrize("k", [0, -1, N_LATENTS + 1])
def test_k_must_fit(k):
    with user_error("between 1 and", str(N_LATENTS), f"k={k}"):
        TopKSAE(D_IN, N_LATENTS, k, generator=generator())


def test_initial_weights_depend_on_the_generator_alone():
    before = torch.get_rng_state()
    a, b, c = (TopKSAE(D_IN, N_LATENTS, K, generator=generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.W_dec, c.W_dec)
    assert torch.equal(torch.get_rng_state(), before)


# ---- unit directions -------------------------------------------------------------------------------


def test_directions_are_unit_vectors_after_normalise():
    sae = random_sae()
    assert torch.allclose(sae.W_dec.norm(dim=-1), torch.ones(N_LATENTS), atol=1e-6)
    with torch.no_grad():
        sae.W_dec.mul_(1 + normal(N_LATENTS, 1).abs())
    along = sae.W_dec.detach().clone()
    assert not torch.allclose(sae.W_dec.norm(dim=-1), torch.ones(N_LATENTS), atol=1e-2)
    sae.normalise()
    assert torch.allclose(sae.W_dec.norm(dim=-1), torch.ones(N_LATENTS), atol=1e-6)
    assert torch.allclose(torch.cosine_similarity(sae.W_dec, along), torch.ones(N_LATENTS), atol=1e-6)


def test_project_gradient_leaves_what_is_orthogonal():
    sae, grad = random_sae(), normal(N_LATENTS, D_IN)
    sae.project_gradient()  # without a gradient there is nothing to do
    sae.W_dec.grad = grad.clone()
    assert (grad * sae.W_dec).sum(-1).abs().max() > 0.1
    sae.project_gradient()
    assert (sae.W_dec.grad * sae.W_dec).sum(-1).abs().max() < 1e-5
    taken = grad - sae.W_dec.grad
    assert torch.allclose(taken, (grad * sae.W_dec).sum(-1, keepdim=True) * sae.W_dec, atol=1e-6)


@pytest.mark.parametrize("scale", [0.25, 1.0, 7.0])
def test_rescaled_is_the_dictionary_of_unscaled_activations(scale):
    sae, x = random_sae(), normal(50, D_IN)
    other = sae.rescaled(scale)
    assert torch.allclose(other.encode(x), sae.encode(scale * x) / scale, atol=1e-4)
    assert torch.allclose(other.decode(other.encode(x)), sae.decode(sae.encode(scale * x)) / scale, atol=1e-4)
    assert torch.equal(other.directions, sae.directions) and not other.W_dec.requires_grad
    if scale != 1:
        assert not torch.allclose(other.encode(x), sae.encode(x), atol=1e-2)


def test_rescaled_leaves_the_original_alone():
    sae = random_sae()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    with torch.no_grad():
        sae.rescaled(3.0).W_dec.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())


# ---- the objective ---------------------------------------------------------------------------------

DEAD = 5


def sae_with_a_dead_latent() -> tuple[TopKSAE, torch.Tensor, torch.Tensor]:
    """A dictionary, activations, and the mask of its one dead latent, never among the k largest."""
    sae, x = random_sae(), normal(64, D_IN, seed=9)
    with torch.no_grad():
        # positive on many tokens, so that a gradient can pass, but smaller than the others' k largest
        sae.W_enc[:, DEAD] *= 0.01
        sae.b_enc[DEAD] = 0.01
    assert not (sae.encode(x)[:, DEAD] > 0).any()
    return sae, x, torch.arange(N_LATENTS) == DEAD


def gradients(sae: TopKSAE, x, dead, **rest) -> dict[str, torch.Tensor]:
    sae.zero_grad()
    topk_objective(sae, x, dead, **rest).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}


def test_the_loss_is_fvu_when_nothing_is_dead():
    sae, x = random_sae(), normal(64, D_IN, seed=9)
    x_hat = sae.decode(sae.encode(x))
    by_hand = (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    outcome = topk_objective(sae, x, torch.zeros(N_LATENTS, dtype=torch.bool))
    assert outcome.loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert outcome.fvu.item() == pytest.approx(fvu(x, x_hat), rel=1e-5)
    assert torch.equal(outcome.active, (sae.encode(x) > 0).any(0))
    assert outcome.l0.item() == pytest.approx(l0(sae.encode(x)))


def test_the_auxiliary_loss_by_hand():
    """One dead latent: what it adds is its own reconstruction of the error."""
    sae, x, dead = sae_with_a_dead_latent()
    error = x - sae.decode(sae.encode(x))
    e_hat = sae.pre(x)[:, DEAD].relu()[:, None] * sae.W_dec[DEAD]
    share = (error - e_hat).pow(2).sum() / (error - error.mean(0)).pow(2).sum()
    outcome = topk_objective(sae, x, dead, aux=0.5)
    assert (outcome.loss - outcome.fvu).item() == pytest.approx(0.5 * share.item(), rel=1e-4)


def test_the_auxiliary_loss_reaches_the_dead_latent_and_nothing_else():
    sae, x, dead = sae_with_a_dead_latent()
    plain, auxiliary = gradients(sae, x, dead, aux=0.0), gradients(sae, x, dead, aux=1 / 32)
    assert plain["W_enc"][:, DEAD].abs().max() == plain["W_dec"][DEAD].abs().max() == plain["b_enc"][DEAD] == 0
    assert auxiliary["W_enc"][:, DEAD].abs().max() > 0
    assert auxiliary["W_dec"][DEAD].abs().max() > 0
    assert auxiliary["b_enc"][DEAD].abs() > 0
    assert torch.equal(plain["W_enc"][:, ~dead], auxiliary["W_enc"][:, ~dead])
    assert torch.equal(plain["W_dec"][~dead], auxiliary["W_dec"][~dead])
    assert torch.equal(plain["b_enc"][~dead], auxiliary["b_enc"][~dead])


def test_at_most_half_as_many_dead_latents_as_dimensions_help():
    sae, x = random_sae(), normal(64, D_IN, seed=9)
    dead = torch.ones(N_LATENTS, dtype=torch.bool)
    f_dead = sae.pre(x).topk(D_IN // 2, dim=-1)
    e_hat = torch.zeros(64, N_LATENTS).scatter(-1, f_dead.indices, f_dead.values.relu()) @ sae.W_dec
    error = x - sae.decode(sae.encode(x))
    share = (error - e_hat).pow(2).sum() / (error - error.mean(0)).pow(2).sum()
    outcome = topk_objective(sae, x, dead, aux=1.0)
    assert (outcome.loss - outcome.fvu).item() == pytest.approx(share.item(), rel=1e-4)


def test_the_objective_changes_no_state():
    sae, x, dead = sae_with_a_dead_latent()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    topk_objective(sae, x, dead)
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())
