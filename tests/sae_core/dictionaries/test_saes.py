"""The architectures: what their codes are, that a code is a token's own, and units of the activations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import generator
from random_saes import D_IN, KINDS, N_LATENTS, K, normal, random_sae, untrained
from tiny import user_error

from sae_core.dictionaries import saes
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.saes import SAE, ReLUSAE, TopKSAE
from sae_core.evaluation.reconstruction import l0


@pytest.fixture(params=KINDS)
def sae(request) -> SAE:
    """Each of the architectures in turn."""
    return random_sae(request.param)


def random_topk(seed: int = 0, *, k: int = K) -> TopKSAE:
    sae = random_sae("topk", seed)
    sae.k = k
    return sae


# ---- codes -------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, N_LATENTS))
def test_codes_of_topk_are_the_k_largest_where_positive(seed, k):
    sae, x = random_topk(seed, k=k), normal(5, D_IN, seed=seed)
    f, pre = sae.encode(x), (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    assert (f >= 0).all() and ((f > 0).sum(-1) <= k).all()
    assert l0(f) <= k
    for row, latents in zip(f, pre, strict=True):
        largest = latents.topk(k).indices
        expected = torch.zeros(N_LATENTS).index_put((largest,), latents[largest].relu())
        assert torch.allclose(row, expected, atol=1e-5)


def test_the_other_codes_by_hand():
    x = normal(40, D_IN)
    for kind in ("relu", "tied", "jumprelu", "gated"):
        sae = random_sae(kind)
        W_enc = sae.W_dec.T if kind == "tied" else sae.W_enc
        pre = (x - sae.b_dec) @ W_enc
        if kind == "gated":
            f = (pre + sae.b_gate > 0) * (sae.r_mag.exp() * pre + sae.b_mag).relu()
        elif kind == "jumprelu":
            f = (pre + sae.b_enc) * (pre + sae.b_enc > sae.threshold)
        else:
            f = (pre + sae.b_enc).relu()
        assert torch.allclose(sae.encode(x), f, atol=1e-5), kind
        assert 0 < l0(f) < N_LATENTS


def test_a_negative_threshold_lets_no_negative_latent_through():
    sae = random_sae("jumprelu")
    with torch.no_grad():
        sae.threshold.fill_(-1)
    assert torch.equal(sae.encode(normal(9, D_IN)), sae.pre(normal(9, D_IN)).relu())


def test_a_gain_multiplies_after_the_choice():
    sae, x, gain = random_topk(), normal(30, D_IN), 1 + normal(N_LATENTS, seed=5).abs()
    before = sae.encode(x)
    sae.gain = gain
    assert torch.allclose(sae.encode(x), before * gain)
    assert "gain" not in dict(sae.named_parameters())


def test_l0_can_be_smaller_than_k():
    sae = random_topk()
    with torch.no_grad():
        sae.b_enc.fill_(-100)
    assert l0(sae.encode(normal(5, D_IN))) == 0
    with torch.no_grad():
        sae.b_enc.fill_(100)
    assert l0(sae.encode(normal(5, D_IN))) == K


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(list(KINDS)), st.integers(0, 10**6), st.integers(0, 6))
def test_a_code_does_not_depend_on_its_neighbours(kind, seed, place):
    sae, x = random_sae(kind, seed), normal(7, D_IN, seed=seed)
    alone, among = sae.encode(x[place]), sae.encode(x)[place]
    assert torch.allclose(alone, among, atol=1e-4)
    other = torch.cat([x[place : place + 1], 100 * normal(3, D_IN, seed=seed + 1)])
    assert torch.allclose(sae.encode(other)[0], among, atol=1e-4)
    assert torch.allclose(sae.encode(x[None])[0], sae.encode(x), atol=1e-4)


def test_decode_is_affine_in_the_directions(sae):
    f = normal(4, N_LATENTS)
    assert torch.allclose(sae.decode(f), f @ sae.W_dec + sae.b_dec, atol=1e-5)
    assert sae.directions is sae.W_dec
    assert torch.equal(sae.decode(torch.zeros(N_LATENTS)), sae.b_dec)
    assert isinstance(sae, Dictionary)
    assert (sae.n_latents, sae.d_in) == (N_LATENTS, D_IN)


def test_encoding_and_decoding_change_no_state(sae):
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    sae.decode(sae.encode(normal(20, D_IN)))
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())


# ---- as they begin -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, -1, N_LATENTS + 1])
def test_k_must_fit(k):
    with user_error("between 1 and", str(N_LATENTS), f"k={k}"):
        TopKSAE(D_IN, N_LATENTS, k, generator=generator())


@pytest.mark.parametrize("kind", KINDS)
def test_initial_weights_depend_on_the_generator_alone(kind):
    before = torch.get_rng_state()
    a, b, c = (untrained(kind, seed) for seed in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.W_dec, c.W_dec)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_begin_along_the_directions(kind):
    sae = untrained(kind)
    assert torch.allclose(torch.cosine_similarity(sae.W_enc.T, sae.W_dec), torch.ones(N_LATENTS), atol=1e-6)
    assert (sae.W_dec.norm(dim=-1) - 1).abs().max() < 1e-6
    assert not sae.b_enc.any() and not sae.b_dec.any()


def test_a_tied_autoencoder_has_one_matrix_and_a_plain_one_two():
    names = {kind: {name for name, _ in random_sae(kind).named_parameters()} for kind in KINDS}
    assert names["tied"] == {"W_dec", "b_enc", "b_dec"}
    assert names["relu"] == names["topk"] == names["tied"] | {"W_enc"}
    assert names["jumprelu"] == names["relu"] | {"threshold"}
    assert names["gated"] == {"W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"}
    sae = random_sae("tied")
    sae.encode(normal(5, D_IN)).sum().backward()
    assert sae.W_dec.grad.any()  # an encoder's gradient, through the tie


# ---- unit directions ---------------------------------------------------------------------------------


def test_directions_are_unit_vectors_after_normalise(sae):
    with torch.no_grad():
        sae.W_dec.mul_(1 + normal(N_LATENTS, 1).abs())
    along = sae.W_dec.detach().clone()
    assert not torch.allclose(sae.W_dec.norm(dim=-1), torch.ones(N_LATENTS), atol=1e-2)
    sae.normalise()
    assert torch.allclose(sae.W_dec.norm(dim=-1), torch.ones(N_LATENTS), atol=1e-6)
    assert torch.allclose(torch.cosine_similarity(sae.W_dec, along), torch.ones(N_LATENTS), atol=1e-6)


def test_normalise_leaves_no_threshold_below_zero():
    sae = random_sae("jumprelu")
    with torch.no_grad():
        sae.threshold[::2] = -0.5
    before = sae.threshold.detach().clone()
    sae.normalise()
    assert torch.equal(sae.threshold, before.relu()) and before.min() < 0 < before.max()


def test_project_gradient_leaves_what_is_orthogonal(sae):
    grad = normal(N_LATENTS, D_IN)
    sae.project_gradient()  # without a gradient there is nothing to do
    sae.W_dec.grad = grad.clone()
    assert (grad * sae.W_dec).sum(-1).abs().max() > 0.1
    sae.project_gradient()
    assert (sae.W_dec.grad * sae.W_dec).sum(-1).abs().max() < 1e-5
    taken = grad - sae.W_dec.grad
    assert torch.allclose(taken, (grad * sae.W_dec).sum(-1, keepdim=True) * sae.W_dec, atol=1e-6)


def test_that_rows_are_taken_a_few_at_a_time_does_not_show(sae, monkeypatch):
    def after() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            sae.W_dec.copy_(1 + normal(N_LATENTS, D_IN))
        sae.normalise()
        sae.W_dec.grad = normal(N_LATENTS, D_IN, seed=1)
        sae.project_gradient()
        return sae.W_dec.detach().clone(), sae.W_dec.grad

    whole = after()
    monkeypatch.setattr(saes, "_ROWS", 7)
    assert all(torch.equal(a, b) for a, b in zip(whole, after(), strict=True))


# ---- units of the activations ------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.25, 1.0, 7.0])
def test_unscaled_is_the_dictionary_of_unscaled_activations(sae, scale):
    x = normal(50, D_IN)
    other, f = sae.unscaled(scale), sae.encode(scale * x)
    assert torch.allclose(other.encode(x), f / scale, atol=1e-4) and f.any()
    assert torch.allclose(other.decode(other.encode(x)), sae.decode(f) / scale, atol=1e-4)
    assert torch.equal(other.directions, sae.directions)
    assert not any(parameter.requires_grad for parameter in other.parameters())
    if scale != 1:
        assert not torch.allclose(other.encode(x), sae.encode(x), atol=1e-2)


def test_unscaled_keeps_the_gain():
    sae, x = random_topk(), normal(30, D_IN)
    sae.gain = 1 + normal(N_LATENTS).abs()
    assert torch.allclose(sae.unscaled(3.0).encode(x), sae.encode(3 * x) / 3, atol=1e-5)


def test_unscaled_leaves_the_original_alone(sae):
    sae.encode(normal(4, D_IN)).sum().backward()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    other = sae.unscaled(3.0)
    assert all(parameter.grad is None for parameter in other.parameters())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())
    assert any(parameter.grad is not None for parameter in sae.parameters())


def test_a_tied_autoencoder_is_a_plain_one_when_finished():
    sae = random_sae("tied")
    finished = sae.unscaled(2.0)
    assert type(finished) is ReLUSAE
    assert torch.equal(finished.W_enc, sae.W_dec.T)
