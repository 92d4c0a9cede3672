"""Measurements: one formula for FVU, no trace of how the text was split, and no effect on what is measured."""

import copy
import math

import pytest
import torch
from handmade import HandModel, normal, random_topk
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_tokens, user_error

from sae_core.codec import to_plain
from sae_core.data.activations import ActivationStream, harvest
from sae_core.dictionaries.baselines import Basis, neurons, pca
from sae_core.dictionaries.saes import TopKSAE
from sae_core.evaluation.counting import Cells, SiteCount
from sae_core.evaluation.profiles import profiles, quality
from sae_core.evaluation.reconstruction import fvu, l0
from sae_core.sites import Site, Stream
from sae_core.training.config import TrainConfig
from sae_core.training.loop import start, train
from sae_core.training.topk_recipes import BatchTopK, TopK


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
    """Twelve contexts, most with BOS in front and some with one inside; two sites; one of them twice."""
    model = tiny_models["gpt2"]
    contexts = random_tokens(60, 12, 24)
    contexts[:9, 0] = contexts[3, 7] = contexts[4, 1] = model.bos_id
    sites = [Site(0), Site(2, Stream.MLP_HIDDEN)]
    x = harvest(model, contexts, tuple(sites))
    sets = {
        "small": {sites[0]: random_topk(32), sites[1]: pca(x[sites[1]], 10)},
        "large": {sites[0]: random_topk(32, 96, 11, seed=3)},
    }
    return model, contexts, sets, x


def test_quality_equals_the_one_shot_formulas(setting):
    model, contexts, sets, x = setting
    for site, got in quality(model, sets["small"], contexts).items():
        f = sets["small"][site].encode(x[site])
        assert got.fvu == pytest.approx(fvu(x[site], sets["small"][site].decode(f)), rel=1e-6)
        assert got.l0 == pytest.approx(l0(f), rel=1e-9)
        assert got.dead == pytest.approx((~(f != 0).any(0)).double().mean().item(), abs=1e-9)
        assert got.n_tokens == len(x[site]) == int(model.content(contexts).sum())


def reference(x, f, x_hat, places, names) -> dict:
    """Everything in `Profile`, in two passes over activations that are all there, token by token."""
    x, x_hat, active = x.double(), x_hat.double(), f != 0
    mean = x.mean(0)
    parts = {}
    for name in names:
        members = [i for i, place in enumerate(places) if place == name]
        error = sum((x[i] - x_hat[i]).pow(2).sum() for i in members)
        spread = sum((x[i] - mean).pow(2).sum() for i in members)
        if members:
            parts[name] = (len(members), float(error / spread), float(active[members].sum(-1).double().mean()))
    return {
        "cosine": torch.cosine_similarity(x, x_hat, dim=-1).mean().item(),
        "norm_ratio": (x_hat.norm(dim=-1) / x.norm(dim=-1)).mean().item(),
        "density": active.double().mean(0),
        "mean": mean,
        "parts": parts,
    }


def test_a_profile_equals_a_two_pass_reference(setting):
    model, contexts, sets, x = setting
    content = model.content(contexts)
    tokens, place = contexts[content].tolist(), content.nonzero()[:, 1].tolist()
    ranked = sorted(set(tokens), key=lambda token: (-tokens.count(token), token))
    bounds = {"0": (0, 0), "1-3": (1, 3), "4-15": (4, 15), "16-63": (16, 63)}
    position = [next(name for name, (low, high) in bounds.items() if low <= p <= high) for p in place]
    frequency = ["1-10" if ranked.index(token) < 10 else "11-100" for token in tokens]
    result = profiles(model, sets, contexts, at_once=5)
    assert result.keys() == sets.keys()
    for name, by_site in result.items():
        assert by_site.keys() == sets[name].keys()
        for site, got in by_site.items():
            f = sets[name][site].encode(x[site])
            x_hat = sets[name][site].decode(f)
            for parts, places, names in (
                (got.by_position, position, bounds),
                (got.by_frequency, frequency, ("1-10", "11-100")),
            ):
                expected = reference(x[site], f, x_hat, places, names)
                assert [part.name for part in parts] == list(expected["parts"])
                for part in parts:
                    n, error, active = expected["parts"][part.name]
                    assert part.n_tokens == n and part.l0 == pytest.approx(active, rel=1e-9)
                    assert part.fvu == pytest.approx(error, rel=1e-6)
            assert got.cosine == pytest.approx(expected["cosine"], rel=1e-6)
            assert got.norm_ratio == pytest.approx(expected["norm_ratio"], rel=1e-6)
            torch.testing.assert_close(got.density, expected["density"], rtol=0, atol=1e-12)
            torch.testing.assert_close(got.mean, expected["mean"], rtol=1e-6, atol=1e-6)
            assert got.quality.l0 == pytest.approx(got.density.sum().item(), rel=1e-9)
            assert got.n_alive == int((f != 0).any(0).sum())


def test_a_profile_does_not_show_how_the_text_was_split_nor_what_else_was_measured(setting):
    model, contexts, sets, _ = setting
    whole = profiles(model, sets, contexts, at_once=len(contexts))
    alone = {"large": profiles(model, {"large": sets["large"]}, contexts)["large"]}
    chunked = [profiles(model, sets, contexts, at_once=at_once) for at_once in (1, 7)]
    few = profiles(model, sets, contexts, codes_at_once=96 * 13)  # thirteen tokens at a time
    for other in (*chunked, alone, few):
        for name, by_site in other.items():
            for site, got in by_site.items():
                expected = whole[name][site]
                assert got.quality.fvu == pytest.approx(expected.quality.fvu, rel=1e-6)  # the model runs in float32
                assert got.quality.l0 == expected.quality.l0 and torch.equal(got.density, expected.density)
                assert got.at_start == expected.at_start
                for part, same in zip(got.by_position, expected.by_position, strict=True):
                    assert part.fvu == pytest.approx(same.fvu, rel=1e-6) and part.l0 == same.l0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e4, 1e8]), st.integers(1, 40))
def test_the_sums_themselves_show_neither_the_split_nor_a_large_offset(seed, offset, size):
    """A sum of squares about zero lost everything at an offset of 1e8: 1e16 has no room for a variance of 1."""
    x = normal(40, 6, seed=seed).double() + offset
    basis = Basis(torch.eye(6, dtype=torch.float64)[:4], x.mean(0))
    contexts = torch.randint(2, 9, (40, 1), generator=torch.Generator().manual_seed(seed))
    cells = Cells(contexts, torch.ones_like(contexts, dtype=torch.bool))
    count = SiteCount(cells, math.inf, 2**20)
    count.include("basis", lambda: basis)
    for rows in torch.arange(40).split(size):
        spot = torch.stack([rows, torch.zeros_like(rows)], -1)
        count.add(x[rows], cells.place[rows, 0], torch.zeros(len(rows), dtype=torch.bool), spot)
    got = count.profile("basis", lambda context, position: "").quality.fvu
    assert got == pytest.approx(fvu(x, basis.decode(basis.encode(x))), rel=1e-6)


def test_the_histogram_holds_every_living_latent_once(setting):
    model, contexts, sets, _ = setting
    for by_site in profiles(model, sets, contexts).values():
        for profile in by_site.values():
            edges, counts = profile.histogram()
            assert len(edges) == len(counts) + 1 and edges[-1] == 0 and 10 ** edges[0] <= 1 / profile.quality.n_tokens
            assert sum(counts) == profile.n_alive
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
                within = (profile.density >= 10**low) & ((profile.density < 10**high) | (high == 0))
                assert count == int((within & (profile.density > 0)).sum())


class Starts:
    """One latent for the place named by coordinate 0 (1 at a start), one that is always active, one that never is."""

    directions = torch.eye(3)

    def encode(self, x):
        return torch.stack([x[..., 0], torch.ones_like(x[..., 0]), torch.zeros_like(x[..., 0])], -1)

    def decode(self, f):
        return f @ self.directions


def test_latents_of_first_positions_are_named():
    contexts = torch.tensor([[0, 5, 6, 7], [0, 5, 6, 7], [5, 6, 7, 8], [0, 0, 6, 7]])
    content = contexts != 0
    first = torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]])
    embedding = torch.zeros(9, 3)
    model = HandModel(embedding, [(torch.zeros(3, 3), torch.zeros(3, 3))])

    def record(tokens, sites):
        h = torch.ones(*tokens.shape, 3)
        rows = (contexts[:, None] == tokens[None]).all(-1).int().argmax(0)
        h[..., 0] = first[rows].float()
        return dict.fromkeys(sites, h)

    model.record = record
    profile = profiles(model, {"": {Site(0): Starts()}}, contexts, at_once=3)[""][Site(0)]
    assert profile.at_start == (0,)
    assert profile.density.tolist() == [4 / int(content.sum()), 1, 0] and profile.quality.dead == pytest.approx(1 / 3)


def test_a_constant_activation_has_no_fvu_and_json_says_null():
    model = HandModel(torch.ones(9, 3), [(torch.zeros(3, 3), torch.zeros(3, 3))])
    profile = profiles(model, {"": {Site(0): neurons(3)}}, torch.full((2, 4), 5))[""][Site(0)]
    assert math.isnan(profile.quality.fvu)
    assert to_plain(profile.quality)["fvu"] is None
    assert profile.cosine == pytest.approx(1) and profile.norm_ratio == pytest.approx(1)


def test_activations_that_are_zero_have_no_direction():
    model = HandModel(torch.zeros(9, 3), [(torch.zeros(3, 3), torch.zeros(3, 3))])
    profile = profiles(model, {"": {Site(0): neurons(3)}}, torch.full((2, 4), 5))[""][Site(0)]
    assert math.isnan(profile.cosine) and math.isnan(profile.norm_ratio)


def test_shrinkage_shows_in_the_norm_and_not_in_the_cosine(setting):
    model, contexts, _, _ = setting

    class Half(type(neurons(32))):
        def decode(self, f):
            return 0.5 * super().decode(f)

    basis = neurons(32)
    profile = profiles(model, {"": {Site(0): Half(basis.directions, basis.mean)}}, contexts)[""][Site(0)]
    assert profile.cosine == pytest.approx(1, abs=1e-6) and profile.norm_ratio == pytest.approx(0.5, abs=1e-6)


def test_a_text_of_special_tokens_only(setting):
    model, _, sets, _ = setting
    with user_error("special"):
        profiles(model, sets, torch.full((2, 4), model.bos_id))


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
    model, contexts, sets, _ = setting
    sae = sets["small"][Site(0)]
    before = copy.deepcopy(sae.state_dict())
    logits, hooks = model.logits(contexts[:1]), sum(len(m._forward_hooks) for m in model.bridge.modules())
    profiles(model, sets, contexts)
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())
    assert all(p.grad is None for p in sae.parameters())
    assert torch.equal(model.logits(contexts[:1]), logits)
    assert sum(len(m._forward_hooks) for m in model.bridge.modules()) == hooks


def test_training_with_measurements_equals_training_without(setting):
    model, contexts, _, _ = setting
    stream = ActivationStream(model, contexts, (Site(0),), seed=3, batch=64)
    configs = [TrainConfig(recipe, expansion=2, tokens=8 * 64, batch=64) for recipe in (TopK(4), BatchTopK(4))]
    plain, measured = start(stream, *configs), start(stream, *configs)
    for _ in train(stream, plain):
        pass
    for _ in train(stream, measured):
        for member in measured.members:
            quality(model, member.dictionaries(), contexts[:4])
    for left, other in zip(plain.members, measured.members, strict=True):
        expected = other.dictionaries()[Site(0)].state_dict()
        for name, tensor in left.dictionaries()[Site(0)].state_dict().items():
            assert torch.equal(tensor, expected[name])
