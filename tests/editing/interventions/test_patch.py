"""Patches at a site: what they leave alone, what they change, and what together gives the clean run."""

from dataclasses import replace

import pytest
import torch
from comparing import close, n_hooks, reference_points
from handmade import complete_basis, normal, random_topk
from patch_runs import MLP, RESID, Runs
from tiny import Edit, user_error

from editing.interventions.add_direction import AddDirection
from editing.interventions.erase import project_out
from editing.interventions.patch import (
    ActivationPatch,
    ErrorPatch,
    FeaturePatch,
    Together,
    ablate,
    patch_features,
    scale,
)
from editing.loss_recovered import Splice
from sae_core.dictionaries.saes import TopKSAE
from sae_core.sites import Site, Stream


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
    unchanged = FeaturePatch(RESID, runs.sae, torch.arange(48), runs.sae.encode(h))
    assert torch.equal(unchanged(h), h)
    close(ErrorPatch(RESID, runs.sae, runs.error(RESID, runs.x_bar))(h), h)


# ---- against the formula ---------------------------------------------------------------------------


def topk_code(sae: TopKSAE, x: torch.Tensor) -> list[float]:
    """c(x), one number at a time."""
    pre = [float((x - sae.b_dec) @ sae.W_enc[:, j] + sae.b_enc[j]) for j in range(sae.W_enc.shape[1])]
    largest = sorted(pre, reverse=True)[: sae.k]
    return [max(value, 0.0) if value in largest else 0.0 for value in pre]


def plainly_patched(reference, clean, corrupted, patched: dict[Site, tuple[TopKSAE, list[int]]]) -> torch.Tensor:
    """Logits of the corrupted prompts with x' = x_bar + sum_i (c_i - c_bar_i) f_i at each site, on the plain model."""
    points, x, handles = reference_points(reference), {}, []
    for site in patched:

        def keep(module, args, output, site=site):
            x[site] = output[0] if isinstance(output, tuple) else output

        handles.append(points[site][0].register_forward_hook(keep))
    with torch.no_grad():
        reference(clean)
        for handle in handles:
            handle.remove()
        handles.clear()
        for site, (sae, latents) in patched.items():

            def write(module, args, output, site=site, sae=sae, latents=latents):
                x_bar = (output[0] if isinstance(output, tuple) else output).clone()
                for b in range(x_bar.shape[0]):
                    for t in range(x_bar.shape[1]):
                        c, c_bar = topk_code(sae, x[site][b, t]), topk_code(sae, x_bar[b, t])
                        x_bar[b, t] += sum((c[i] - c_bar[i]) * sae.W_dec[i] for i in latents)
                return (x_bar, *output[1:]) if isinstance(output, tuple) else x_bar

            handles.append(points[site][0].register_forward_hook(write))
        logits = reference(corrupted).logits
    for handle in handles:
        handle.remove()
    return logits


def test_a_feature_patch_is_the_formula_recomputed_plainly(checkpoints, kind, runs):
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(checkpoints[kind], attn_implementation="eager").eval()
    clean, corrupted = runs.clean[:, :4], runs.corrupted[:, :4]
    below, above = Site(0, Stream.MLP_OUT), RESID
    patched = {below: (random_topk(32, 24), list(range(12))), above: (random_topk(32, 24, seed=5), [1, 5, 8, 13, 21])}
    x = runs.model.record(clean, patched)

    def by_patches(*sites: Site) -> torch.Tensor:
        edits = [patch_features(site, *patched[site], x[site]) for site in sites]
        with runs.model.hooks(*edits):
            return runs.model.logits(corrupted)

    close(by_patches(above), plainly_patched(reference, clean, corrupted, {above: patched[above]}), 1e-4)
    both = plainly_patched(reference, clean, corrupted, patched)
    close(by_patches(below, above), both, 1e-4)
    assert torch.equal(by_patches(above, below), by_patches(below, above))  # sites have an order of their own
    assert (by_patches(above) - both).abs().max() > 1e-2 and (by_patches(below) - both).abs().max() > 1e-2
    # control: c_bar and x_bar of the run that is not patched below give something else
    x_bar = runs.model.record(corrupted, patched)
    frozen = patch_features(above, *patched[above], x[above])(x_bar[above]) - x_bar[above]
    with runs.model.hooks(patch_features(below, *patched[below], x[below]), AddDirection(above, frozen)):
        assert (runs.model.logits(corrupted) - both).abs().max() > 1e-2


# ---- bad input -------------------------------------------------------------------------------------


def test_a_dictionary_of_another_site_is_refused_and_leaves_no_trace(runs):
    before, hooks, hidden = runs.model.logits(runs.corrupted), n_hooks(runs.model), Site(1, Stream.MLP_HIDDEN)
    for edit in (
        ablate(hidden, runs.sae, [0]),
        scale(hidden, runs.sae, [0], 2.0),
        Splice(hidden, runs.sae),
        ErrorPatch(hidden, runs.sae, torch.zeros(1, 1, 32)),
        ActivationPatch(hidden, torch.zeros(1, 1, 32)),
        AddDirection(hidden, torch.zeros(32)),
        project_out(hidden, normal(2, 32)),
    ):
        with user_error("mlp_hidden.1", "32", "64"):
            runs.edited(ablate(RESID, runs.sae, [1]), edit)
        assert n_hooks(runs.model) == hooks
        assert torch.equal(runs.model.logits(runs.corrupted), before)
    with user_error("mlp_hidden.1", "32", "64"):
        patch_features(hidden, runs.sae, [0], torch.zeros(1, 1, 64))


def test_patches_together_need_one_site():
    with user_error("resid_post.1", "mlp_out.1"):
        Together((ablate(RESID, random_topk(32), [0]), ablate(MLP, random_topk(32), [0])))
    with user_error("no patches"):
        Together(())


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


# ---- order, masks, traces --------------------------------------------------------------------------


def test_latents_listed_together_are_read_before_any_is_written():
    """The sum of the single changes; separate patches encode anew, so the second sees what the first did."""
    sae, h = random_topk(32), 3 * torch.randn(4, 20, 32, generator=torch.Generator().manual_seed(3))
    a, b = (sae.encode(h) != 0).sum((0, 1)).topk(2).indices.tolist()
    first, other = ablate(RESID, sae, [a]), ablate(RESID, sae, [b])
    together = ablate(RESID, sae, [a, b])(h)
    close(together, h + (first(h) - h) + (other(h) - h))
    assert torch.allclose(ablate(RESID, sae, [b, a])(h), together, atol=1e-6)
    assert (other(first(h)) - first(other(h))).abs().max() > 1e-2
    assert (other(first(h)) - together).abs().max() > 1e-2


def test_separate_patches_apply_from_left_to_right(tiny_models):
    runs = Runs(tiny_models["neox"])
    first, other = (ablate(RESID, runs.sae, list(latents)) for latents in (range(12), range(12, 24)))
    h = runs.x_bar[RESID]
    close(runs.edited(first, other), runs.edited(Edit(RESID, lambda _: other(first(h)))))
    assert (runs.edited(first, other) - runs.edited(other, first)).abs().max() > 1e-3


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
