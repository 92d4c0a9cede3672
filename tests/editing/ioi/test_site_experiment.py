"""Runs at one site: the fast path against whole forward passes, the edited positions, and the first-order estimate."""

from dataclasses import replace

import pytest
import torch
from comparing import close
from handmade import normal, random_topk
from plain_patching import EVERY_SITE, RESID, full_logits, plain_kl, random_pairs, reference_readout
from tiny import user_error

from editing.engine import batching as memory
from editing.engine.batching import peak_bytes
from editing.interventions.add_direction import AddDirection
from editing.interventions.patch import ActivationPatch
from editing.ioi.curve import floor, trace
from editing.ioi.site_experiment import PatchExperiment
from editing.tasks.pairs import at_end
from sae_core.dictionaries.baselines import nonnegative_pca, pca
from sae_core.sites import Site, Stream


@pytest.fixture
def experiment(tiny) -> PatchExperiment:
    return PatchExperiment(tiny, random_pairs(tiny), RESID)


@pytest.fixture(scope="module")
def neox(tiny_models) -> PatchExperiment:
    return PatchExperiment(tiny_models["neox"], random_pairs(tiny_models["neox"]), RESID)


@EVERY_SITE
def test_the_short_route_is_taken_just_where_a_change_is_added_to_the_residual(tiny, kind, site):
    """A change of the MLP's output is; one of attention's output only where blocks are parallel."""
    experiment = PatchExperiment(tiny, random_pairs(tiny), site)
    after, change = Site(site.layer), normal(*experiment.x.shape)
    with tiny.hooks(AddDirection(site, change)):
        moved = tiny.record(experiment.pairs.corrupted, [after])[after] - experiment.resumed.after
    added = moved.shape == change.shape and torch.allclose(moved, change, atol=1e-4)
    assert experiment.adds == added
    assert added == (
        site.stream in (Stream.RESID_POST, Stream.MLP_OUT) or (kind == "neox" and site.stream is Stream.ATTN_OUT)
    )


def test_the_reference_runs_are_the_models_own(experiment):
    model, pairs = experiment.model, experiment.pairs
    close(experiment.resumed.logits, at_end(model.logits(pairs.corrupted), pairs.end))
    close(experiment.answers.clean, at_end(model.logits(pairs.clean), pairs.end).log_softmax(-1))
    assert (experiment.clean.kl == 0).all() and (experiment.corrupted.kl > 0).all()
    p = experiment.answers.clean.exp()
    close(experiment.clean.probability, p[torch.arange(3), pairs.answer])


def test_edited_are_the_content_positions_up_to_the_answer(neox):
    expected = torch.zeros(3, 9, dtype=torch.bool)
    for row, end in enumerate((8, 5, 6)):
        expected[row, 1 : end + 1] = True
    assert torch.equal(neox.mask, expected)
    assert (neox.patching(random_topk(32)).contributions(torch.arange(48), torch.arange(3))[~expected] == 0).all()


def test_positions_count_from_each_prompts_end(tiny_models):
    model = tiny_models["neox"]
    pairs = random_pairs(model)
    last = PatchExperiment(model, pairs, RESID, [-1])
    assert [row.nonzero()[:, 0].tolist() for row in last.mask] == [[8], [5], [6]]
    few = PatchExperiment(model, pairs, RESID, [-2, -1, -6])  # BOS stands at -6 of the second
    assert [row.nonzero()[:, 0].tolist() for row in few.mask] == [[3, 7, 8], [4, 5], [1, 5, 6]]
    sae = random_topk(32)
    readout = torch.stack(trace(few.patching(sae), range(48), [20]).readout, -1)
    close(readout[0], reference_readout(few, sae, list(range(20))).double(), 2e-4)
    for wrong in (0, 3, -7):
        with user_error("position", "from the end"):
            PatchExperiment(model, pairs, RESID, [wrong])


@pytest.mark.slow
@EVERY_SITE
def test_everything_patched_is_the_clean_activation_in_the_corrupted_run(tiny, site):
    """At residual sites that is the clean run; the complete decompositions get there with their latents alone."""
    experiment = PatchExperiment(tiny, random_pairs(tiny), site)
    expected = full_logits(experiment, ActivationPatch(site, experiment.x, experiment.mask))
    left = plain_kl(experiment.answers.clean, expected)
    assert (left < 1e-5) if site.stream is Stream.RESID_POST else (left > 0.01)
    x = torch.cat([experiment.x, experiment.x_bar]).flatten(0, 1)
    for dictionary in (random_topk(experiment.x.shape[-1]), pca(x), nonnegative_pca(x)):
        below = floor(experiment.patching(dictionary))
        assert below["all_latents_and_error"] == pytest.approx(left, abs=2e-4)
        assert (below["all_latents"] != pytest.approx(left, abs=1e-3)) == (len(dictionary.directions) == 48)


@EVERY_SITE
def test_the_estimate_is_the_derivative_of_the_kl(tiny, site):
    """-d KL / dt at t = 0 when neox latent alone is moved by t (c - c_bar), by central differences."""
    experiment, step = PatchExperiment(tiny, random_pairs(tiny), site), 0.01
    patching, everyone = experiment.patching(random_topk(experiment.x.shape[-1], 24)), torch.arange(3)

    def kl(sign: int) -> torch.Tensor:
        trials = ((everyone, sign * step * patching.contribution(j, everyone)) for j in range(24))
        return patching.table(trials).kl.mean(1)

    got, expected = patching.first_order(), (kl(-1) - kl(1)) / (2 * step)
    assert expected.abs().max() > 1e-3
    assert (got - expected).abs().max() < 0.02 * expected.abs().max() + 1e-4
    assert (got[~patching.differs.any(0)] == 0).all()


@pytest.mark.slow
def test_a_backward_pass_stays_within_its_memory(tiny_models, monkeypatch):
    model = tiny_models["gpt2"]
    pairs = random_pairs(model)
    many = {name: getattr(pairs, name).repeat_interleave(40, 0) for name in ("clean", "corrupted", "end")}
    many |= {name: getattr(pairs, name).repeat(40) for name in ("answer", "foil", "rival", "groups")}
    experiment = PatchExperiment(model, replace(pairs, **many), Site(0))
    whole = experiment.gradient
    for budget in (2**20, 2**22):
        monkeypatch.setattr(memory, "MEMORY", budget)
        fresh = PatchExperiment(model, replace(pairs, **many), Site(0))
        peak = peak_bytes(lambda fresh=fresh: fresh.gradient)
        assert 0.3 * budget < peak <= budget + 2 * whole.nbytes
        close(fresh.gradient, whole, 1e-5)


def test_prompts_that_cannot_be_aligned_are_refused(tiny_models):
    model = tiny_models["neox"]
    pairs = random_pairs(model)
    short = replace(pairs)
    object.__setattr__(short, "corrupted", pairs.corrupted[:, :7])  # as it would be where shapes are not checked
    with user_error("random", "length", "9 tokens", "7 tokens"):
        PatchExperiment(model, short, RESID)
    none = {
        name: getattr(pairs, name)[:0] for name in ("clean", "corrupted", "answer", "foil", "rival", "end", "groups")
    }
    with user_error("no prompts", "random"):
        PatchExperiment(model, replace(pairs, **none), RESID)


def test_features_of_another_site_are_refused(neox):
    with user_error("width 64", "resid_post.1", "width 32"):
        neox.patching(random_topk(64))
