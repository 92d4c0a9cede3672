"""Means, other tokens, single positions, error terms and random directions, each against whole forward passes."""

from contextlib import nullcontext as nothing

import pytest
import torch
from handmade import random_topk
from tiny import user_error
from whole_forwards import LATENTS, Setting, effects_of

from circuits.effects.ablation_effects import (
    ToMean,
    ToOthers,
    ablation_effects,
    effects_by_position,
    error_effect,
    null_effects,
)
from circuits.features.atlas import Examples
from editing.interventions.add_direction import AddDirection
from editing.interventions.patch import ErrorPatch, ablate
from sae_core.seeds import generator_for
from sae_core.sites import Site


@pytest.mark.slow
def test_latents_set_to_their_mean(tiny):
    setting = Setting(tiny, Site(1))
    mean = torch.rand(LATENTS, generator=torch.Generator().manual_seed(2))
    effects = ablation_effects(setting.causes(ablation=ToMean(mean)))
    expected = [setting.effect(setting.patch(j, mean[j].view(1, 1, 1), setting.content)) for j in range(LATENTS)]
    assert effects.effect.tolist() == pytest.approx(expected, abs=1e-5)
    assert (effects.n_active == len(setting.examples)).all(), "a mean that is not zero changes every example"


@pytest.mark.slow
def test_latents_set_to_those_of_other_tokens(tiny):
    """The values that were drawn, put in by a whole forward pass."""
    setting = Setting(tiny, Site(1))
    others = torch.rand(50, LATENTS, generator=torch.Generator().manual_seed(2)).relu()
    ablation = ToOthers(others, seed=3)
    effects = ablation_effects(setting.causes(ablation=ablation))
    width = setting.examples.tokens.shape[1]
    drawn = torch.zeros(len(setting.examples), width, LATENTS)
    for i, end in enumerate(setting.examples.end.tolist()):
        drawn[i, : end + 1] = ablation(torch.zeros(end + 1, LATENTS), i)
    expected = [setting.effect(setting.patch(j, drawn[..., [j]], setting.content)) for j in range(LATENTS)]
    assert effects.effect.tolist() == pytest.approx(expected, abs=1e-5)
    again = ablation_effects(setting.causes(ablation=ToOthers(others, seed=3)))
    assert torch.equal(again.effect, effects.effect)
    assert not torch.equal(ablation_effects(setting.causes(ablation=ToOthers(others, seed=4))).effect, effects.effect)


def test_single_positions(tiny):
    setting = Setting(tiny, Site(1))
    effects, _ = effects_by_position(setting.causes())
    end, width = setting.examples.end, setting.examples.tokens.shape[1]
    for back in (0, 2):
        place = (torch.arange(width) == (end - back)[:, None]) & setting.content
        for j in effects.abs().sum(1).topk(3).indices.tolist():
            edit = ablate(Site(1), setting.dictionaries[Site(1)], [j], mask=place)
            assert float(effects[j, back]) == pytest.approx(setting.effect(edit), abs=1e-5)
    assert effects.abs().max() > 0.01


def test_the_error_term_as_a_cause(tiny):
    setting = Setting(tiny, Site(1))
    zero = torch.zeros(1, 1, 32)
    edit = ErrorPatch(Site(1), setting.dictionaries[Site(1)], zero, setting.content)
    assert error_effect(setting.causes())[0] == pytest.approx(setting.effect(edit), abs=1e-5)


def test_random_directions_in_place_of_a_latents_own(tiny):
    """Each null effect is that of a whole forward pass in which the codes go along that direction."""
    setting = Setting(tiny, Site(1))
    causes = setting.causes()
    latent = int(ablation_effects(causes).effect.abs().argmax())
    effects = null_effects(causes, latent, 5, seed=1)
    x = tiny.record(setting.examples.tokens, [Site(1)])[Site(1)]
    codes = setting.dictionaries[Site(1)].encode(x)[..., latent] * setting.content
    drawn = torch.randn(5, 32, generator=generator_for(1, "null", str(setting.target), "resid_post.1"))
    for r, direction in enumerate(torch.nn.functional.normalize(drawn, dim=-1)):
        edit = AddDirection(Site(1), -codes[..., None] * direction)
        assert float(effects[r]) == pytest.approx(setting.effect(edit), abs=1e-5)


@pytest.mark.slow
def test_about_one_in_a_hundred_random_directions_stands_out(tiny_models):
    """With a random dictionary a cause's own direction is like those that it is held against."""
    setting = Setting(tiny_models["neox"], Site(1))
    sae = setting.dictionaries[Site(1)] = random_topk(32, 128, 6)
    drawn = torch.randn(128, 32, generator=torch.Generator().manual_seed(11))  # the encoder's rows are no longer near
    sae.W_dec.data = torch.nn.functional.normalize(drawn, dim=-1)
    causes = setting.causes()
    effects, percentiles = ablation_effects(causes), []
    for latent in (effects.n_active > 2).nonzero()[:, 0].tolist():
        null = null_effects(causes, latent, 100)
        percentiles.append(float((null.abs() < abs(float(effects.effect[latent]))).double().mean()))
    beyond = [sum(p > level for p in percentiles) / len(percentiles) for level in (0.99, 0.5)]
    assert len(percentiles) >= 40 and beyond[0] <= 0.06 and 0.3 < beyond[1] < 0.7, (len(percentiles), beyond)


def test_the_standard_error_is_that_of_a_ratio(tiny):
    """Against the jackknife, which takes examples out one by one; both estimate the same."""
    setting = Setting(tiny, Site(1))
    effects = setting.effects()
    latent = int((effects.effect.abs() * (effects.n_active > 9)).argmax())
    clean = setting.read()
    edit = ablate(Site(1), setting.dictionaries[Site(1)], [latent], mask=setting.content)
    drop, n = clean - setting.read(edit), len(clean)
    without = torch.stack([(drop.sum() - drop[i]) / (clean.sum() - clean[i]) for i in range(n)])
    jackknife = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
    assert float(effects.error[latent]) == pytest.approx(float(jackknife), rel=0.3)
    first = Examples(setting.examples.tokens[:1], setting.examples.end[:1], setting.examples.activation[:1])
    with user_error("not active") if not clean[0] > 0 else nothing():
        alone = effects_of(tiny, setting.dictionaries, Site(1), setting.target, first)
        assert alone.error.isnan().all()


@pytest.mark.parametrize("cause", ["error", "mean"])
def test_outliers_are_left_alone_as_by_edits(tiny, cause):
    """With a limit that a fifth of the tokens exceed: what is taken is what edits by whole forward passes take."""
    setting = Setting(tiny, Site(1))
    dictionary, x = setting.dictionaries[Site(1)], tiny.record(setting.examples.tokens, [Site(1)])[Site(1)]
    mean = torch.rand(LATENTS, generator=torch.Generator().manual_seed(2))

    def measured() -> tuple[float, float]:
        if cause == "error":
            edit = ErrorPatch(Site(1), dictionary, torch.zeros(1, 1, 32), setting.content)
            return error_effect(setting.causes())[0], setting.effect(edit)
        only = torch.tensor([5])
        taken = ablation_effects(setting.causes(ablation=ToMean(mean)), only).effect[5]
        return float(taken), setting.effect(setting.patch(5, mean[5].view(1, 1, 1), setting.content))

    without = measured()
    dictionary.outlier_norm = x[setting.content].norm(dim=-1).quantile(0.8).item()
    with_limit = measured()
    assert with_limit[0] == pytest.approx(with_limit[1], abs=1e-5)
    assert abs(with_limit[0] - without[0]) > 3e-5  # control: they do matter
