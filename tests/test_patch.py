"""Patches at a site: what they leave alone, what they change, and what together gives the clean run."""

from dataclasses import replace

import pytest
import torch
from handmade import complete_basis, random_topk
from test_models import close, n_hooks
from tiny import Edit, random_tokens, user_error

from editing.patch import ActivationPatch, ErrorPatch, FeaturePatch, Together, ablate
from sae_core.sites import Site, Stream

RESID, MLP = Site(1), Site(1, Stream.MLP_OUT)


class Runs:
    """A clean and a corrupted run of one of the tiny models, with a random dictionary."""

    def __init__(self, model):
        self.model, self.sae = model, random_topk(model.d_model)
        self.clean = random_tokens(model.n_vocab, 3, 9, seed=1)
        self.corrupted = random_tokens(model.n_vocab, 3, 9, seed=2)
        self.x = model.record(self.clean, [RESID, MLP])
        self.x_bar = model.record(self.corrupted, [RESID, MLP])

    def edited(self, *edits):
        with self.model.hooks(*edits):
            return self.model.logits(self.corrupted)

    def every_latent(self, site: Site, dictionary) -> FeaturePatch:
        """All latents to their clean codes."""
        latents = torch.arange(len(dictionary.directions))
        return FeaturePatch(site, dictionary, latents, dictionary.encode(self.x[site]))

    def error(self, site: Site, x) -> torch.Tensor:
        return x[site] - self.sae.decode(self.sae.encode(x[site]))


@pytest.fixture
def runs(tiny) -> Runs:
    return Runs(tiny)


# ---- identities ------------------------------------------------------------------------------------


def test_patching_nothing_leaves_the_corrupted_run_bitwise(runs):
    expected = runs.model.logits(runs.corrupted)
    for site in (RESID, MLP):
        nothing = FeaturePatch(site, runs.sae, torch.tensor([], dtype=torch.long), torch.zeros(1, 1, 0))
        assert torch.equal(runs.edited(nothing), expected)
        assert torch.equal(runs.edited(ablate(site, runs.sae, [])), expected)
        assert not torch.equal(runs.edited(runs.every_latent(site, runs.sae)), expected)  # control


def test_every_latent_and_the_error_give_the_clean_run(runs):
    whole = Together((runs.every_latent(RESID, runs.sae), ErrorPatch(RESID, runs.sae, runs.error(RESID, runs.x))))
    close(runs.edited(whole), runs.model.logits(runs.clean), 1e-4)


def test_latents_without_the_error_leave_exactly_its_difference(runs):
    """Control: the patched activation is the clean one minus e - e_bar, and the logits are not the clean ones."""
    patched = runs.every_latent(RESID, runs.sae)(runs.x_bar[RESID])
    difference = runs.error(RESID, runs.x) - runs.error(RESID, runs.x_bar)
    close(patched, runs.x[RESID] - difference)
    assert difference.norm(dim=-1).min() > 0.1
    far = runs.edited(runs.every_latent(RESID, runs.sae)) - runs.model.logits(runs.clean)
    assert far.abs().amax(-1).min() > 0.1


def test_a_complete_basis_gives_the_clean_run(runs):
    close(
        runs.edited(runs.every_latent(RESID, complete_basis(runs.model.d_model))), runs.model.logits(runs.clean), 1e-4
    )


def test_at_another_site_they_give_the_corrupted_run_with_its_clean_activation(runs):
    expected = runs.edited(ActivationPatch(MLP, runs.x[MLP]))
    whole = Together((runs.every_latent(MLP, runs.sae), ErrorPatch(MLP, runs.sae, runs.error(MLP, runs.x))))
    close(runs.edited(whole), expected, 1e-4)
    close(runs.edited(runs.every_latent(MLP, complete_basis(runs.model.d_model))), expected, 1e-4)
    for other in (runs.clean, runs.corrupted):  # control: it is neither of the two runs
        assert (runs.model.logits(other) - expected).abs().max() > 0.1


def test_the_own_codes_and_the_own_error_change_nothing(runs):
    h = runs.x_bar[RESID]
    own = FeaturePatch(RESID, runs.sae, torch.arange(48), runs.sae.encode(h))
    assert torch.equal(own(h), h)
    close(ErrorPatch(RESID, runs.sae, runs.error(RESID, runs.x_bar))(h), h)


# ---- ablation --------------------------------------------------------------------------------------


def test_ablating_what_is_not_active_changes_nothing_at_all(runs):
    active = (runs.sae.encode(runs.x_bar[RESID]) != 0).any(0).any(0)
    assert 0 < active.sum() < len(active)
    expected = runs.model.logits(runs.corrupted)
    silent, loud = (~active).nonzero()[:, 0].tolist(), active.nonzero()[:, 0].tolist()
    assert torch.equal(runs.edited(ablate(RESID, runs.sae, silent)), expected)
    for latent in loud[:3]:
        assert not torch.equal(runs.edited(ablate(RESID, runs.sae, [latent])), expected)


def test_an_ablation_writes_along_its_direction_only_and_only_where_active(runs):
    h = runs.x_bar[RESID]
    codes = runs.sae.encode(h)
    latent = int((codes != 0).sum((0, 1)).argmax())
    here = codes[..., latent] != 0
    change = ablate(RESID, runs.sae, [latent])(h) - h
    assert here.any() and not here.all()
    assert (change[~here] == 0).all()
    close(change, -codes[..., latent, None] * runs.sae.directions[latent])


@pytest.mark.parametrize("latent", [48, -1, 10**9])
def test_an_unknown_latent_is_refused(latent):
    with user_error(str(latent), "resid_post.1", "48"):
        ablate(RESID, random_topk(32), [0, latent])


# ---- order, masks, traces --------------------------------------------------------------------------


def test_latents_listed_together_are_read_before_any_is_written():
    """The sum of the single changes; separate patches encode anew, so the second sees what the first did."""
    sae, h = random_topk(32), 3 * torch.randn(4, 20, 32, generator=torch.Generator().manual_seed(3))
    a, b = (sae.encode(h) != 0).sum((0, 1)).topk(2).indices.tolist()
    one, other = ablate(RESID, sae, [a]), ablate(RESID, sae, [b])
    together = ablate(RESID, sae, [a, b])(h)
    close(together, h + (one(h) - h) + (other(h) - h))
    assert torch.allclose(ablate(RESID, sae, [b, a])(h), together, atol=1e-6)
    assert (other(one(h)) - one(other(h))).abs().max() > 1e-2
    assert (other(one(h)) - together).abs().max() > 1e-2


def test_separate_patches_apply_from_left_to_right(tiny_models):
    runs = Runs(tiny_models["neox"])
    one, other = (ablate(RESID, runs.sae, list(latents)) for latents in (range(12), range(12, 24)))
    h = runs.x_bar[RESID]
    close(runs.edited(one, other), runs.edited(Edit(RESID, lambda _: other(one(h)))))
    assert (runs.edited(one, other) - runs.edited(other, one)).abs().max() > 1e-3


def test_error_and_latents_in_sequence_do_not_give_the_clean_run(tiny_models):
    """Control for the identity: what is written first changes what the second encodes."""
    runs = Runs(tiny_models["neox"])
    latents, error = runs.every_latent(RESID, runs.sae), ErrorPatch(RESID, runs.sae, runs.error(RESID, runs.x))
    for edits in ((latents, error), (error, latents)):
        assert (runs.edited(*edits) - runs.model.logits(runs.clean)).abs().max() > 1e-2


def test_a_mask_limits_every_patch(runs):
    h, mask = runs.x_bar[RESID], torch.zeros(3, 9, dtype=torch.bool)
    mask[0, 2] = mask[2, 5:] = True
    patches = (
        runs.every_latent(RESID, runs.sae),
        ErrorPatch(RESID, runs.sae, runs.error(RESID, runs.x)),
        ActivationPatch(RESID, runs.x[RESID]),
        ActivationPatch(RESID, torch.zeros(1, 1, 32)),
    )
    for patch in patches:
        limited = replace(patch, mask=mask)(h)
        assert torch.equal(limited[~mask], h[~mask])
        assert torch.equal(limited[mask], patch(h)[mask])
        assert (patch(h) - h).abs().amax(-1).min() > 0


def test_no_position_before_the_mask_notices(runs):
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[:, 4] = True
    change = runs.edited(ActivationPatch(RESID, runs.x[RESID], mask)) - runs.model.logits(runs.corrupted)
    assert (change[:, :4] == 0).all() and (change[:, 4:].abs().amax(-1) > 1e-3).all()


def test_patches_leave_no_trace(runs):
    before, hooks, weights = runs.model.logits(runs.corrupted), n_hooks(runs.model), runs.sae.W_dec.clone()
    h = runs.x_bar[RESID].clone()
    runs.edited(runs.every_latent(RESID, runs.sae), ablate(MLP, runs.sae, [1, 2]))
    runs.every_latent(RESID, runs.sae)(runs.x_bar[RESID])
    with pytest.raises(RuntimeError, match="stop"), runs.model.hooks(ablate(RESID, runs.sae, [0])):
        raise RuntimeError("stop")
    assert n_hooks(runs.model) == hooks
    assert torch.equal(runs.model.logits(runs.corrupted), before)
    assert torch.equal(runs.x_bar[RESID], h) and torch.equal(runs.sae.W_dec, weights)
