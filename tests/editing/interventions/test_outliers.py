"""Tokens of massive norm keep their activation in every edit, saved, loaded and exported; others are edited as ever."""

import math

import pytest
import torch
from massive import Massive
from random_saes import normal, random_sae

from editing.interventions import plain_hook
from editing.interventions.erase import fit_leace
from editing.interventions.patch import ablate, clamp, patch_features, scale, splice_with_error
from editing.interventions.save import describe_all, load_edit, save_edit
from editing.ioi.joint_experiment import JointExperiment
from editing.ioi.site_experiment import PatchExperiment
from editing.loss_recovered import Splice, splice_costs
from editing.removal.edits.random_edits import random_projection
from sae_core.outliers import norm_limit
from sae_core.sites import Site

SITE = Site(1)
EDITS = ("ablate", "clamp", "scale", "patch", "splice", "splice with error", "leace", "random")


@pytest.fixture
def sae():
    return random_sae("topk")


def activations(sae):
    """[3, 5, 8], of which position 2 is a hundred times as large, and beyond the limit of `sae`."""
    h = normal(3, 5, 8, seed=4)
    sae.outlier_norm = norm_limit(h.norm(dim=-1).flatten(), 10.0)
    h[:, 2] *= 100
    return h


def edits(sae, h):
    labels = torch.arange(15) % 2 == 0
    leace = fit_leace(SITE, normal(15, 8, seed=5), labels)
    other = h.roll(1, 0).clone()
    other[:, 2] = normal(3, 8, seed=6)  # the run whose codes are patched in has no outlier there
    return {
        "ablate": ablate(SITE, sae, range(24)),
        "clamp": clamp(SITE, sae, [0, 3], 2.0),
        "scale": scale(SITE, sae, range(24), 3.0),
        "patch": patch_features(SITE, sae, range(24), other),
        "splice": Splice(SITE, sae),
        "splice with error": splice_with_error(SITE, sae, other),
        "leace": type(leace)(SITE, leace.left, leace.right, leace.mean, outlier_norm=sae.outlier_norm),
        "random": random_projection(
            SITE, h.flatten(0, 1), 2, generator=torch.Generator().manual_seed(0), outlier_norm=sae.outlier_norm
        ),
    }


@pytest.mark.parametrize(
    "name", ["ablate", "clamp", "scale", "patch", "splice", "splice with error", "leace", "random"]
)
def test_an_edit_leaves_outliers_alone(sae, name):
    h = activations(sae)
    edited = edits(sae, h)[name](h)
    others = [0, 1, 3, 4]
    assert torch.equal(edited[:, 2], h[:, 2]) and not torch.equal(edited[:, others], h[:, others])
    sae.outlier_norm = math.inf
    if name not in ("leace", "random"):  # control: without the limit it does edit them
        assert not torch.equal(edits(sae, h)[name](h)[:, 2], h[:, 2])


def test_where_the_other_run_has_an_outlier_nothing_is_patched(sae):
    """Its codes there are zero: they would ablate what they should leave."""
    h = activations(sae)
    usual = h.clone()
    usual[:, 2] /= 100
    assert torch.equal(patch_features(SITE, sae, range(24), h)(usual)[:, 2], usual[:, 2])


@pytest.mark.parametrize("name", ["ablate", "leace"])
def test_a_saved_edit_and_a_plain_hook_leave_them_alone_too(sae, name, tmp_path):
    h = activations(sae)
    edit = edits(sae, h)[name]
    save_edit(edit, tmp_path)
    (loaded,) = load_edit(tmp_path)
    assert torch.equal(loaded(h), edit(h))
    (card,), tensors = describe_all(edit)
    plain = plain_hook.edited(card, {key.removeprefix("0."): value for key, value in tensors.items()}, h)
    assert torch.allclose(plain, edit(h), atol=1e-5) and torch.equal(plain[:, 2], h[:, 2])


# ---- in experiments --------------------------------------------------------------------------------


def test_ioi_patches_and_feature_patches_agree_on_outliers(tiny_models):
    """All latents at once, at one site and in the joint form: what `patch_features` writes."""
    from plain_patching import full_logits, plain_kl, random_pairs

    model = tiny_models["neox"]
    with model.hooks(Massive(SITE, 100.0)):
        experiment = PatchExperiment(model, random_pairs(model), SITE)
        sae = random_sae("topk", d_in=32, n_latents=48)
        sae.outlier_norm = norm_limit(experiment.x_bar.norm(dim=-1).flatten(), 10.0)
        every, prompts = torch.arange(48), torch.arange(len(experiment))
        patching = experiment.patching(sae)
        single = patching.table([(prompts, patching.contributions(every, prompts))]).kl.mean().item()
        joint = JointExperiment(model, random_pairs(model), [SITE]).patching({SITE: sae})
        jointly = joint.table([(prompts, joint.contributions(every, prompts))]).kl.mean().item()
        edit = patch_features(SITE, sae, every, experiment.x, mask=experiment.mask)
        whole = plain_kl(experiment.answers.clean, full_logits(experiment, edit))
    assert single == pytest.approx(whole, rel=1e-4) == pytest.approx(jointly, rel=1e-4)


def test_loss_recovered_compares_the_same_tokens(tiny_models):
    """A splice that writes nothing recovers nothing: the ablation beside it writes nothing either."""
    from tiny import random_tokens

    model, sae = tiny_models["neox"], random_sae("topk", d_in=32, n_latents=48)
    contexts = random_tokens(model.n_vocab, 4, 12)
    sae.outlier_norm = 1e-3
    cost = splice_costs(model, {SITE: sae}, contexts)[SITE]
    assert cost.original == pytest.approx(cost.spliced) == pytest.approx(cost.zeroed)
    sae.outlier_norm = math.inf
    cost = splice_costs(model, {SITE: sae}, contexts)[SITE]
    assert cost.zeroed != pytest.approx(cost.original)
