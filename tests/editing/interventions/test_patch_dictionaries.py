"""Patches with every kind of dictionary at every stream."""

import pytest
import torch
from comparing import close
from handmade import complete_basis, normal, random_topk
from patch_runs import Runs

from editing.interventions.patch import (
    ActivationPatch,
    Together,
    ablate,
    patch_features,
    scale,
    splice_with_error,
)
from editing.loss_recovered import Splice
from sae_core.dictionaries.baselines import Basis, Rectified, Unmixing
from sae_core.dictionaries.normalised import LayerNormed, NormRescaled
from sae_core.dictionaries.saes import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from sae_core.sites import Site, Stream


@pytest.fixture(scope="module")
def runs(tiny_models) -> Runs:
    """Of one model: that patches do the same in every kind of model, `test_patch.py` shows."""
    return Runs(tiny_models["gpt2"])


def with_any_parameters(sae: SAE, *, seed: int = 0) -> SAE:
    """The same architecture with an encoder and biases that are anything, and mostly silent latents."""
    with torch.no_grad():
        for number, (name, value) in enumerate(sorted(sae.named_parameters())):
            if name != "W_dec":
                value += 0.1 * normal(*value.shape, seed=seed + number)
        for name in ("b_enc", "b_gate", "b_mag"):
            getattr(sae, name, torch.zeros(1)).sub_(0.5)
        if isinstance(sae, JumpReLUSAE):
            sae.threshold += 1.0
    return sae.requires_grad_(False)


def topk_with_gain(d: int) -> TopKSAE:
    sae = random_topk(d)
    sae.gain = 0.5 + torch.rand(48, generator=torch.Generator().manual_seed(1))
    return sae


def unmixing(d: int) -> Unmixing:
    directions = torch.nn.functional.normalize(normal(20, d), dim=-1)
    return Unmixing(directions, normal(d, 20, seed=1) / d**0.5, normal(d, seed=2))


def chance() -> torch.Generator:
    return torch.Generator().manual_seed(0)


DICTIONARIES = {
    "relu": lambda d: with_any_parameters(ReLUSAE(d, 48, generator=chance())),
    "topk": random_topk,
    "topk with gain": topk_with_gain,
    "jumprelu": lambda d: with_any_parameters(JumpReLUSAE(d, 48, generator=chance())),
    "gated": lambda d: with_any_parameters(GatedSAE(d, 48, generator=chance())),
    "complete basis": complete_basis,
    "part of a basis": lambda d: Basis(complete_basis(d).directions[:10], normal(d)),
    "rectified": lambda d: Rectified(complete_basis(d).directions[:10], normal(d)),
    "unmixing": unmixing,
    "layer norm": lambda d: LayerNormed(random_topk(d)),
    "norm rescaled": lambda d: NormRescaled(random_topk(d)),
}


SITES = (Site(1), Site(1, Stream.MLP_OUT), Site(0, Stream.MLP_HIDDEN), Site(2, Stream.ATTN_OUT))


@pytest.fixture(params=DICTIONARIES)
def make(request):
    return DICTIONARIES[request.param]


@pytest.mark.slow
def test_the_identities_hold_for_every_dictionary_at_every_stream(runs, make):
    """Nothing patched: the corrupted run; everything: with the clean activation; own values: no bit changes."""
    corrupted, clean = runs.model.logits(runs.corrupted), runs.model.logits(runs.clean)
    x, x_bar = (runs.model.record(tokens, SITES) for tokens in (runs.clean, runs.corrupted))
    for site in SITES:
        dictionary = make(x[site].shape[-1])
        latents = range(len(dictionary.directions))
        unchanged = patch_features(site, dictionary, latents, x_bar[site])
        nothing = (ablate(site, dictionary, []), unchanged, scale(site, dictionary, latents, 1.0))
        assert torch.equal(runs.edited(*nothing), corrupted)
        close(runs.edited(splice_with_error(site, dictionary, x_bar[site])), corrupted, 1e-4)

        every = patch_features(site, dictionary, latents, x[site])
        whole = Together((every, splice_with_error(site, dictionary, x[site])))
        expected = clean if site.stream is Stream.RESID_POST else runs.edited(ActivationPatch(site, x[site]))
        close(runs.edited(whole), expected, 1e-4)
        error = x[site] - dictionary.decode(dictionary.encode(x[site]))
        exact = error.abs().max() < 1e-4
        assert exact == (make is complete_basis)
        if exact:
            close(runs.edited(every), expected, 1e-4)
            close(runs.edited(Splice(site, dictionary)), corrupted, 1e-4)
        else:  # control: what the dictionary misses is missed
            assert (runs.edited(every) - expected).abs().max() > 1e-3
            assert (runs.edited(Splice(site, dictionary)) - corrupted).abs().max() > 1e-3


@pytest.mark.slow
def test_ablating_what_is_silent_changes_nothing_for_every_dictionary_at_every_stream(runs, make):
    corrupted, x_bar, n_silent = runs.model.logits(runs.corrupted), runs.model.record(runs.corrupted, SITES), 0
    for site in SITES:
        dictionary = make(x_bar[site].shape[-1])
        active = (dictionary.encode(x_bar[site]) != 0).any(0).any(0)
        silent, loud = (which.nonzero()[:, 0].tolist() for which in (~active, active))
        n_silent += len(silent)
        nothing = (ablate(site, dictionary, silent), scale(site, dictionary, silent, -3.0))
        assert torch.equal(runs.edited(*nothing), corrupted)
        gone = runs.edited(ablate(site, dictionary, loud))
        assert (gone - corrupted).abs().max() > 1e-3  # control
        close(runs.edited(scale(site, dictionary, loud, 0.0)), gone, 1e-4)
    assert n_silent or isinstance(dictionary, Basis | Rectified | Unmixing)
