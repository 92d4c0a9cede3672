"""Measurements: one formula for FVU, no trace of how the text was split, and no effect on what is measured."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import make_stream, tiny_training, weights

from sae_core.activations import harvest
from sae_core.dictionaries import neurons, pca
from sae_core.measures import fvu, l0, quality
from sae_core.saes import TopKSAE
from sae_core.sites import Site, Stream
from sae_core.training import TrainConfig, start, train


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-50, 50))
def test_fvu_laws(seed, scale, shift):
    x, x_hat = normal(20, 6, seed=seed) + shift, normal(20, 6, seed=seed + 1) + shift
    assert fvu(x, x) == 0
    assert fvu(x, x.mean(0).expand_as(x)) == pytest.approx(1, abs=1e-4)
    rotation = torch.linalg.qr(normal(6, 6, seed=seed + 2)).Q
    assert fvu(x @ rotation, x_hat @ rotation) == pytest.approx(fvu(x, x_hat), rel=1e-3)
    assert fvu(scale * x, scale * x_hat) == pytest.approx(fvu(x, x_hat), rel=1e-3)
    assert fvu(x + 1, x_hat + 1) == pytest.approx(fvu(x, x_hat), rel=1e-3)
    assert fvu(x, x_hat) > 0.1


def test_fvu_is_one_ratio_of_sums_and_not_a_mean_of_ratios():
    """Dimensions of different size: x ~ (1, 10), half of the small one's variance unexplained."""
    x = torch.tensor([[1.0, 10.0], [-1.0, -10.0]])
    assert fvu(x, torch.tensor([[0.0, 10.0], [0.0, -10.0]])) == pytest.approx(1 / 101)
    assert fvu(x + 5, x + 6) == pytest.approx(4 / 202)


def test_l0_is_a_mean_over_tokens():
    assert l0(torch.tensor([[1.0, 0.0, -2.0], [0.0, 0.0, 0.5]])) == 1.5


@pytest.fixture(scope="module")
def setting(tiny_models):
    model = tiny_models["gpt2"]
    contexts = make_stream(model).contexts
    sites = [Site(0), Site(2, Stream.MLP_HIDDEN)]
    x = harvest(model, contexts, tuple(sites))
    sae = TopKSAE(32, 64, 4, generator=torch.Generator().manual_seed(0))
    return model, contexts, {sites[0]: sae, sites[1]: pca(x[sites[1]], 10)}, x


def test_quality_equals_the_one_shot_formulas(setting):
    model, contexts, dictionaries, x = setting
    for site, got in quality(model, dictionaries, contexts).items():
        f = dictionaries[site].encode(x[site])
        assert got.fvu == pytest.approx(fvu(x[site], dictionaries[site].decode(f)), rel=1e-6)
        assert got.l0 == pytest.approx(l0(f), rel=1e-9)
        assert got.dead == pytest.approx((~(f != 0).any(0)).float().mean().item(), abs=1e-9)
        assert got.n_tokens == len(x[site]) == int(model.content(contexts).sum())


def test_quality_does_not_show_how_the_text_was_split(setting):
    model, contexts, dictionaries, _ = setting
    whole = quality(model, dictionaries, contexts, at_once=len(contexts))
    for at_once in (1, 7, 32):
        for site, got in quality(model, dictionaries, contexts, at_once=at_once).items():
            assert got.fvu == pytest.approx(whole[site].fvu, rel=1e-6)  # the model itself runs in float32
            assert (got.l0, got.dead, got.n_tokens) == (whole[site].l0, whole[site].dead, whole[site].n_tokens)


def test_the_sums_themselves_do_not_show_the_split(setting):
    from sae_core.measures import _Sums

    _, _, dictionaries, x = setting
    site = Site(0)
    f = dictionaries[site].encode(x[site]).detach()
    x_hat = dictionaries[site].decode(f).detach()

    def in_chunks(n: int) -> float:
        sums = _Sums(64, 32)
        for rows in zip(x[site].split(n), f.split(n), x_hat.split(n), strict=True):
            sums.add(*rows)
        return sums.quality().fvu

    assert in_chunks(3) == pytest.approx(in_chunks(10**6), rel=1e-9)
    assert in_chunks(10**6) == pytest.approx(fvu(x[site], x_hat), rel=1e-9)


def test_quality_of_known_dictionaries(setting):
    model, contexts, _, _ = setting
    got = quality(model, {Site(1): neurons(32)}, contexts)[Site(1)]
    assert got.fvu < 1e-10 and got.dead == 0 and got.l0 > 31
    nothing = TopKSAE(32, 64, 4, generator=torch.Generator())
    with torch.no_grad():
        nothing.b_enc.fill_(-1e6)
    got = quality(model, {Site(1): nothing}, contexts)[Site(1)]
    assert got.dead == 1 and got.l0 == 0 and got.fvu >= 1


def test_measuring_changes_nothing(setting):
    model, contexts, dictionaries, _ = setting
    sae = dictionaries[Site(0)]
    before = copy.deepcopy(sae.state_dict())
    logits, hooks = model.logits(contexts[:1]), sum(len(m._forward_hooks) for m in model.bridge.modules())
    quality(model, dictionaries, contexts)
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())
    assert all(p.grad is None for p in sae.parameters())
    assert torch.equal(model.logits(contexts[:1]), logits)
    assert sum(len(m._forward_hooks) for m in model.bridge.modules()) == hooks


def test_training_with_measurements_equals_training_without(tiny_models):
    model = tiny_models["neox"]
    stream, config = make_stream(model), TrainConfig(k=4, expansion=2, tokens=10 * 64, batch=64, warm_up=3)
    plain = tiny_training(stream, config)
    state = start(stream, config)
    for _ in train(stream, state, config):
        quality(model, state.dictionaries(), stream.contexts[:4])
    assert weights(state).keys() == weights(plain).keys()
    assert all(torch.equal(tensor, weights(plain)[name]) for name, tensor in weights(state).items())
