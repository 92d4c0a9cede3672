"""Patches at a site: what they leave alone, what they change, and what together gives the clean run."""

from dataclasses import replace

import pytest
import torch
from comparing import close, n_hooks, reference_points
from handmade import complete_basis, normal, random_topk
from tiny import Edit, random_tokens, user_error

from editing.interventions.add_direction import AddDirection
from editing.interventions.erase import project_out
from editing.interventions.patch import (
    ActivationPatch,
    ErrorPatch,
    FeaturePatch,
    FeatureScale,
    Together,
    ablate,
    clamp,
    mean_ablate,
    patch_features,
    resample_ablate,
    scale,
    splice_with_error,
)
from editing.loss_recovered import Splice
from sae_core.dictionaries.baselines import Basis, Rectified, Unmixing
from sae_core.dictionaries.normalised import LayerNormed, NormRescaled
from sae_core.dictionaries.saes import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from sae_core.sites import FeatureId, Site, Stream

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


# ---- identities ------------------------------------------------------------------------------------


def test_the_identities_hold_for_every_dictionary_at_every_stream(runs, make):
    """Nothing patched: the corrupted run; everything: with the clean activation; own values: no bit changes."""
    corrupted, clean = runs.model.logits(runs.corrupted), runs.model.logits(runs.clean)
    x, x_bar = (runs.model.record(tokens, SITES) for tokens in (runs.clean, runs.corrupted))
    for site in SITES:
        dictionary = make(x[site].shape[-1])
        latents = range(len(dictionary.directions))
        own = patch_features(site, dictionary, latents, x_bar[site])
        nothing = (ablate(site, dictionary, []), own, scale(site, dictionary, latents, 1.0))
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

    def ours(*sites: Site) -> torch.Tensor:
        edits = [patch_features(site, *patched[site], x[site]) for site in sites]
        with runs.model.hooks(*edits):
            return runs.model.logits(corrupted)

    close(ours(above), plainly_patched(reference, clean, corrupted, {above: patched[above]}), 1e-4)
    both = plainly_patched(reference, clean, corrupted, patched)
    close(ours(below, above), both, 1e-4)
    assert torch.equal(ours(above, below), ours(below, above))  # sites have an order of their own
    assert (ours(above) - both).abs().max() > 1e-2 and (ours(below) - both).abs().max() > 1e-2
    # control: c_bar and x_bar of the run that is not patched below give something else
    x_bar = runs.model.record(corrupted, patched)
    frozen = patch_features(above, *patched[above], x[above])(x_bar[above]) - x_bar[above]
    with runs.model.hooks(patch_features(below, *patched[below], x[below]), AddDirection(above, frozen)):
        assert (runs.model.logits(corrupted) - both).abs().max() > 1e-2


# ---- what latents are set to -----------------------------------------------------------------------


class OneSite:
    """Activations at a site without a model, and more of them to take values from."""

    def __init__(self):
        self.sae, self.h, self.x = random_topk(32), 3 * normal(3, 9, 32), 3 * normal(40, 32, seed=1)
        self.latents = [4, 7, 30, 31]
        self.d, self.f = self.sae.directions[self.latents], self.sae.encode(self.h)[..., self.latents]

    def expected(self, target) -> torch.Tensor:
        return self.h + (target - self.f) @ self.d


def test_each_way_to_set_latents_writes_its_values():
    one, values = OneSite(), torch.tensor([0.0, 1.0, -2.0, 0.5])
    given = (RESID, one.sae, one.latents)
    other = 3 * normal(3, 9, 32, seed=2)
    close(ablate(*given)(one.h), one.expected(0.0))
    close(clamp(*given, 1.5)(one.h), one.expected(1.5))
    close(clamp(*given, values)(one.h), one.expected(values))
    close(patch_features(*given, other)(one.h), one.expected(one.sae.encode(other)[..., one.latents]))
    close(mean_ablate(*given, one.x)(one.h), one.expected(one.sae.encode(one.x)[:, one.latents].mean(0)))
    close(scale(*given, 2.5)(one.h), one.h + 1.5 * one.f @ one.d)
    close(scale(*given, values)(one.h), one.h + ((values - 1) * one.f) @ one.d)
    assert one.f.any(0).any(0).sum() > 2  # control: latents that are never active would prove little


def test_resampled_values_are_those_of_one_token_for_each_position():
    one = OneSite()

    def resampled(seed: int, shape=(3, 9)) -> FeaturePatch:
        generator = torch.Generator().manual_seed(seed)
        return resample_ablate(RESID, one.sae, one.latents, one.x, shape, generator=generator)

    patch, pool = resampled(0), one.sae.encode(one.x)[:, one.latents]
    assert patch.target.shape == (3, 9, 4)
    found = (patch.target[..., None, :] == pool).all(-1)
    assert found.any(-1).all()
    assert len({tuple(row.tolist()) for row in patch.target.flatten(0, 1)}) > 5
    close(patch(one.h), one.expected(patch.target))
    assert torch.equal(patch(one.h), resampled(0)(one.h)) and torch.equal(patch(one.h), patch(one.h))
    assert not torch.equal(patch(one.h), resampled(1)(one.h))
    assert resampled(0, (3, 1)).target.shape == (3, 1, 4)


def test_features_are_named_by_number_by_name_or_by_tensor():
    one = OneSite()
    expected = ablate(RESID, one.sae, [4, 7])(one.h)
    for latents in (torch.tensor([4, 7]), [FeatureId(RESID, 4), FeatureId(RESID, 7)], (4, FeatureId(RESID, 7))):
        assert torch.equal(ablate(RESID, one.sae, latents)(one.h), expected)


# ---- bad input -------------------------------------------------------------------------------------


def test_a_feature_of_another_site_is_refused():
    with user_error("mlp_out.1_4", "mlp_out.1", "resid_post.1"):
        ablate(RESID, random_topk(32), [3, FeatureId(MLP, 4)])


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


def test_values_that_do_not_fit_the_latents_are_refused():
    with user_error("2 latents", "3 values", "resid_post.1"):
        FeaturePatch(RESID, random_topk(32), torch.tensor([0, 1]), torch.zeros(1, 1, 3))
    with user_error("48", "resid_post.1"):
        FeaturePatch(RESID, random_topk(32), torch.tensor([0, 48]), torch.zeros(1, 1, 2))
    with user_error("-1", "resid_post.1"):
        FeatureScale(RESID, random_topk(32), torch.tensor([-1]), torch.ones(1))
    with user_error("no activations", "resid_post.1"):
        mean_ablate(RESID, random_topk(32), [0], torch.zeros(0, 32))


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
