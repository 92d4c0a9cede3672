"""Tokens of massive norm steer nothing: what is trained and measured does not depend on how large they are."""

import math

import pytest
import torch
from massive import Massive
from random_saes import random_sae
from streams import SITES, make_stream, same
from tiny import random_tokens

from sae_core.data.activation_cache import CachedStream
from sae_core.evaluation.profiles import profiles, quality
from sae_core.evaluation.reconstruction import fvu
from sae_core.outliers import inliers, norm_limit
from sae_core.sites import Site
from sae_core.training.calibration import outlier_norms
from sae_core.training.config import TrainConfig
from sae_core.training.kl import ContextStream, Divergence
from sae_core.training.loop import start, train
from sae_core.training.topk_recipes import TopK

SITE = SITES[0]


@pytest.fixture
def model(tiny_models):
    return tiny_models["neox"]


def trained(model, factor: float, outliers: float = 10.0, make=make_stream):
    """Weights after six steps on text in which position 3 is `factor` times as large."""
    with model.hooks(Massive(SITE, factor)):
        stream = make(model)
        state = start(stream, TrainConfig(TopK(2), expansion=2, batch=64, tokens=6 * 64), outliers=outliers)
        for _ in train(stream, state):
            pass
    weights = {site: dictionary.W_dec for site, dictionary in state.dictionaries().items()}
    return state, weights


def test_the_limit_is_a_multiple_of_the_median_and_off_at_zero():
    norms = torch.tensor([1.0, 2.0, 3.0, 1e6, 2.0])
    assert norm_limit(norms, 10.0) == 20.0
    assert norm_limit(norms, 0.0) == norm_limit(torch.zeros(3), 10.0) == math.inf
    assert inliers(torch.tensor([[3.0, 4.0], [3.0, 4.1], [math.nan, 0.0]]), 5.0).tolist() == [True, False, True]


def test_planted_outliers_steer_no_training(model):
    state, weights = trained(model, 1e3)
    assert torch.equal(weights[SITE], trained(model, 1e5)[1][SITE])  # blocks above see how large they are
    assert state.limits[SITE] < math.inf and state.members[0].dictionaries()[SITE].outlier_norm == state.limits[SITE]
    left_in = [trained(model, factor, outliers=0.0)[1][SITE] for factor in (1e3, 1e5)]
    assert not torch.equal(*left_in)


def test_a_model_without_outliers_trains_as_if_nobody_looked_for_them(model):
    assert same(trained(model, 1.0)[1], trained(model, 1.0, outliers=0.0)[1])


def test_scale_and_centre_are_those_of_the_other_tokens(model):
    """To rounding: with outliers left in, the scale falls by their size."""
    at_1e3, at_1e5 = trained(model, 1e3)[0], trained(model, 1e5)[0]
    left_in = trained(model, 1e3, outliers=0.0)[0]
    scales = [state.members[0].sites[SITE].scale for state in (at_1e3, at_1e5, left_in)]
    assert scales[0] == scales[1] > 100 * scales[2]


def test_every_batch_holds_the_same_tokens_at_every_site(model):
    """A token that is massive at one site is missing at the other, too."""
    with model.hooks(Massive(SITE, 1e3)):
        stream = make_stream(model)
        limits = outlier_norms(stream, 10.0)
        with_them, without = (list(stream.block(0, each)) for each in ({}, limits))
    left = [batch[SITE].norm(dim=-1) <= limits[SITE] for batch in with_them]
    for site in SITES:
        rows = torch.cat([batch[site][kept] for batch, kept in zip(with_them, left, strict=True)])
        assert torch.equal(rows[: 64 * len(without)], torch.cat([batch[site] for batch in without])[: len(rows)])


def test_a_cache_gives_the_same_batches(model, tmp_path):
    def cached(model):
        return CachedStream(make_stream(model), tmp_path)

    assert same(trained(model, 1e3)[1], trained(model, 1e3, make=cached)[1])
    assert same(trained(model, 1e3)[1], trained(model, 1e3, make=cached)[1])  # read from the folder


def test_training_on_kl_leaves_them_as_they_are(model):
    """Their reconstruction is neither learnt nor put into the model."""
    contexts = random_tokens(model.n_vocab, 8, 12)
    with model.hooks(Massive(SITE, 1e3)):
        stream = ContextStream(model, contexts, (SITE,), 0, 48)
        limits = outlier_norms(stream, 10.0)
        batch = next(stream.block(0, limits))
        assert not batch.content[:, 3].any() and batch.content[:, 4:].all()
        assert len(batch[SITE]) == int(batch.content.sum())
        assert Divergence(model)(SITE, batch[SITE], batch) < 1e-5  # perfect reconstructions cost nothing


# ---- measuring -------------------------------------------------------------------------------------


@pytest.fixture
def measured(model):
    """A dictionary that leaves outliers out, on text with some: by how large they are, and the activations."""
    sae = random_sae("topk", d_in=32, n_latents=64)
    contexts = random_tokens(model.n_vocab, 20, 12)
    x = model.record(contexts, [SITE])[SITE]
    sae.outlier_norm = norm_limit(x.flatten(0, 1).norm(dim=-1), 10.0)

    def at(factor: float, limit: float = sae.outlier_norm):
        sae.outlier_norm = limit
        with model.hooks(Massive(SITE, factor)):
            return quality(model, {SITE: sae}, contexts)[SITE]

    return at, sae, x


def test_planted_outliers_change_nothing_but_their_own_count(measured):
    at, sae, x = measured
    none, large, more = at(1.0), at(1e3), at(1e5)
    others = x[:, [i for i in range(12) if i != 3]].flatten(0, 1)
    assert none.outliers.n == 0 and large.outliers.n == more.outliers.n == 20
    assert (large.fvu, large.l0, large.dead, large.fvu_median) == (more.fvu, more.l0, more.dead, more.fvu_median)
    assert large.fvu == pytest.approx(fvu(others, sae.decode(sae.codes(others))), rel=1e-5)
    assert large.n_tokens == len(others) and none.n_tokens == 20 * 12
    assert {token.position for token in large.outliers.tokens} == {3} and large.outliers.tokens[1].context == 1


def test_with_them_fvu_is_that_of_all_tokens(measured, model):
    at, sae, x = measured
    all_tokens = Massive(SITE, 1e3)(x).flatten(0, 1)
    with_them = at(1e3).outliers
    assert with_them.fvu == pytest.approx(fvu(all_tokens, sae.decode(sae.codes(all_tokens))), rel=1e-5)
    mean = all_tokens.double().mean(0)
    spread = (all_tokens.double() - mean).pow(2).sum(-1).view(20, 12)
    assert with_them.variance == pytest.approx((spread[:, 3].sum() / spread.sum()).item(), rel=1e-6)
    assert at(1e3).warning() and not at(1.0).warning()
    off = at(1e3, math.inf)
    assert off.outliers is None and off.fvu == pytest.approx(with_them.fvu, rel=1e-5) and off.n_tokens == 240


def test_the_median_is_that_of_the_tokens(measured):
    at, sae, x = measured
    others = x[:, [i for i in range(12) if i != 3]]
    shift = others[:16].flatten(0, 1).mean(0)  # of the first sixteen contexts
    rows = others.flatten(0, 1)
    error = (rows - sae.decode(sae.codes(rows))).pow(2).sum(-1)
    assert at(1e3).fvu_median == pytest.approx((error / (rows - shift).pow(2).sum(-1)).median().item(), rel=1e-4)


def test_dictionaries_of_one_site_may_leave_out_different_tokens(model):
    contexts = random_tokens(model.n_vocab, 6, 12)
    a, b = random_sae("topk", d_in=32, n_latents=64), random_sae("topk", d_in=32, n_latents=64)
    limit = norm_limit(model.record(contexts, [Site(0)])[Site(0)].flatten(0, 1).norm(dim=-1), 10.0)
    a.outlier_norm = limit
    with model.hooks(Massive(Site(0), 1e3)):
        both = profiles(model, {"a": {Site(0): a}, "b": {Site(0): b}}, contexts)
        assert both["a"][Site(0)].quality.fvu == quality(model, {Site(0): a}, contexts)[Site(0)].fvu
    assert both["a"][Site(0)].quality.n_tokens == 66 and both["b"][Site(0)].quality.n_tokens == 72
