"""The IOI curve: the fast path against full forwards from the formula, its two ends, and every site and stream."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from comparing import close
from handmade import complete_basis, normal, random_topk
from plain_patching import RESID, full_logits, plain_kl, random_pairs
from tiny import user_error

from editing.engine import batching as memory
from editing.engine.batching import peak_bytes
from editing.interventions.add_direction import AddDirection
from editing.interventions.patch import ActivationPatch
from editing.ioi.curve import CurvePoint, default_counts, floor, summary, trace
from editing.ioi.feature_sets import KL, PROBABILITY
from editing.ioi.site_experiment import PatchExperiment
from editing.metrics import interval, resampled
from editing.tasks.pairs import at_end
from sae_core.dictionaries.baselines import nonnegative_pca, pca
from sae_core.sites import Site, Stream


@pytest.fixture
def experiment(tiny) -> PatchExperiment:
    return PatchExperiment(tiny, random_pairs(tiny), RESID)


PLACES = [
    RESID,
    Site(0, Stream.MLP_OUT),
    Site(1, Stream.MLP_HIDDEN),
    Site(0, Stream.ATTN_OUT),
    Site(1, Stream.ATTN_OUT),
]
SITES = pytest.mark.parametrize("site", PLACES, ids=str)


@pytest.fixture(scope="module")
def one(tiny_models) -> PatchExperiment:
    return PatchExperiment(tiny_models["neox"], random_pairs(tiny_models["neox"]), RESID)


def curve(experiment: PatchExperiment, dictionary, order, counts) -> tuple[CurvePoint, ...]:
    """The points of a curve."""
    found, weights = trace(experiment.patching(dictionary), order, counts), resampled(experiment.pairs.groups, 0)
    return summary(experiment.clean, experiment.corrupted, found, weights)


def reference(experiment: PatchExperiment, dictionary, latents: list[int]) -> torch.Tensor:
    """KL, logit difference, probability and edit size of every prompt, each from its formula.

    One prompt at a time without its padding, each with two full forwards of the model and no hook but the patch.
    """
    model, pairs, rows = experiment.model, experiment.pairs, []
    for row, end in enumerate(pairs.end.tolist()):
        clean, corrupted = pairs.clean[row : row + 1, : end + 1], pairs.corrupted[row : row + 1, : end + 1]
        x, x_bar = (model.record(tokens, [experiment.site])[experiment.site] for tokens in (clean, corrupted))
        edited = torch.zeros_like(x)
        for pos in range(end + 1):
            if experiment.mask[row, pos]:
                c, c_bar = dictionary.encode(x[0, pos]), dictionary.encode(x_bar[0, pos])
                edited[0, pos] = sum(((c[i] - c_bar[i]) * dictionary.directions[i] for i in latents), torch.zeros(1))
        q = model.logits(clean)[0, -1]
        with model.hooks(ActivationPatch(experiment.site, x_bar + edited)):
            p = model.logits(corrupted)[0, -1]
        answer, foil = pairs.answer[row], pairs.foil[row]
        kl = F.kl_div(p.log_softmax(-1), q.log_softmax(-1), log_target=True, reduction="sum")
        size = edited.norm(dim=-1).sum() / experiment.mask[row].sum()
        rows.append(torch.stack([kl, p[answer] - p[foil], p.softmax(-1)[answer], size]))
    return torch.stack(rows)


# ---- the fast path ---------------------------------------------------------------------------------


def dictionary_for(experiment: PatchExperiment, make=random_topk):
    return make(experiment.x.shape[-1])


@SITES
def test_every_point_is_that_of_the_formula_by_full_forwards(tiny, site):
    experiment = PatchExperiment(tiny, random_pairs(tiny), site)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0)).tolist()
    sae, counts = dictionary_for(experiment), [0, 1, 7, 48]
    found = trace(experiment.patching(sae), order, counts)
    for row, count in enumerate(counts):
        close(found.readout[row], reference(experiment, sae, order[:count]).double(), 2e-4)
    assert (found.readout[0] - found.readout[3]).abs().max() > 1e-3  # control


@SITES
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
    assert (experiment.clean[:, KL] == 0).all() and (experiment.corrupted[:, KL] > 0).all()
    p = experiment.answers.clean.exp()
    close(experiment.clean[:, PROBABILITY], p[torch.arange(3), pairs.answer])


def test_edited_are_the_content_positions_up_to_the_answer(one):
    expected = torch.zeros(3, 9, dtype=torch.bool)
    for row, end in enumerate((8, 5, 6)):
        expected[row, 1 : end + 1] = True
    assert torch.equal(one.mask, expected)
    assert (one.patching(random_topk(32)).several(torch.arange(48), torch.arange(3))[~expected] == 0).all()


def test_positions_count_from_each_prompts_end(tiny_models):
    model = tiny_models["neox"]
    pairs = random_pairs(model)
    last = PatchExperiment(model, pairs, RESID, [-1])
    assert [row.nonzero()[:, 0].tolist() for row in last.mask] == [[8], [5], [6]]
    few = PatchExperiment(model, pairs, RESID, [-2, -1, -6])  # BOS stands at -6 of the second
    assert [row.nonzero()[:, 0].tolist() for row in few.mask] == [[3, 7, 8], [4, 5], [1, 5, 6]]
    sae = random_topk(32)
    close(trace(few.patching(sae), range(48), [20]).readout[0], reference(few, sae, list(range(20))).double(), 2e-4)
    for wrong in (0, 3, -7):
        with user_error("position", "from the end"):
            PatchExperiment(model, pairs, RESID, [wrong])


@SITES
def test_rows_do_not_notice_how_they_are_stacked(tiny_models, site):
    experiment = PatchExperiment(tiny_models["gpt2"], random_pairs(tiny_models["gpt2"]), site)
    sae = dictionary_for(experiment)
    expected = trace(experiment.patching(sae), range(48), list(range(49)))
    for at_once in (1, 4, 1000):
        experiment.at_once = at_once
        close(trace(experiment.patching(sae), range(48), list(range(49))).readout, expected.readout, 1e-4)


def test_a_prompt_on_which_nothing_was_added_is_not_run_again(one, monkeypatch):
    sae, ran, read = random_topk(32), [], one.read
    differs = ((sae.encode(one.x) - sae.encode(one.x_bar)) * one.mask[..., None]).ne(0).any(1)
    patching = one.patching(sae)
    assert torch.equal(patching.differs, differs) and one.at_once
    monkeypatch.setattr(one, "read", lambda rows, change: ran.append(len(rows)) or read(rows, change))
    trace(patching, range(48), range(49))
    assert sum(ran) == differs.sum() < 0.9 * differs.numel()


# ---- memory ----------------------------------------------------------------------------------------


def test_passes_stay_within_their_memory(one, monkeypatch):
    """The real peak of a curve, with budgets for a few rows and for many: all that waits for a pass is counted.

    Beside it there is what the experiment itself holds: no more than a few tensors of the size of its runs.
    """
    sae, held = random_topk(32), 4 * one.x.nbytes
    for budget in (2**17, 2**19):
        monkeypatch.setattr(memory, "MEMORY", budget)
        fresh = PatchExperiment(one.model, one.pairs, one.site)
        rows = torch.arange(3).repeat(fresh.at_once)[: fresh.at_once]
        change = torch.zeros(len(rows), 9, 32)
        assert 0.5 * budget < peak_bytes(partial(fresh.read, rows, change)) <= budget
        patching = fresh.patching(sae)
        assert patching.at_once == fresh.at_once
        trials = ((torch.arange(3), patching.several(torch.arange(n % 48), torch.arange(3))) for n in range(60))
        assert peak_bytes(partial(patching.table, trials)) <= budget + held + 60 * 4 * one.corrupted.nbytes


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


# ---- the ends of the curve -------------------------------------------------------------------------


def test_the_curve_begins_at_the_corrupted_run(experiment):
    start = curve(experiment, random_topk(32), range(48), [0, 5])[0]
    assert start.n_features == start.recovered == start.edit_size == 0
    assert start.intervals["recovered"] == pytest.approx((0, 0), abs=1e-9)
    assert start.intervals["kl"][0] <= start.kl <= start.intervals["kl"][1]
    assert start.kl == pytest.approx(plain_kl(experiment.answers.clean, experiment.resumed.logits), rel=1e-4)
    assert start.kl > 0.1


def test_a_complete_basis_ends_at_the_clean_run(experiment):
    for dictionary in (complete_basis(32), pca(experiment.x.flatten(0, 1)[:27])):
        end = curve(experiment, dictionary, range(32), [0, 16, 32])[-1]
        assert end.kl == pytest.approx(0, abs=1e-4) and end.recovered == pytest.approx(1, abs=1e-3)
        sizes = (experiment.x - experiment.x_bar).norm(dim=-1)
        whole = sum(own[mask].mean().item() for own, mask in zip(sizes, experiment.mask, strict=True)) / 3
        assert end.edit_size == pytest.approx(whole, rel=1e-4)


def test_a_sparse_dictionary_ends_at_the_floor(experiment):
    sae = random_topk(32)
    end = curve(experiment, sae, range(48), [0, 10, 48])[-1]
    below = floor(experiment.patching(sae))
    assert end.kl == pytest.approx(below["all_latents"], rel=1e-4)
    assert below["nothing"] == pytest.approx(plain_kl(experiment.answers.clean, experiment.resumed.logits), rel=1e-4)
    assert below["all_latents_and_error"] == pytest.approx(0, abs=1e-4)
    assert below["all_latents"] > 0.05  # control: without the error it is not the clean run


@SITES
def test_everything_patched_is_the_clean_activation_in_the_corrupted_run(tiny, site):
    """At residual sites that is the clean run; the complete decompositions get there with their latents alone."""
    experiment = PatchExperiment(tiny, random_pairs(tiny), site)
    expected = full_logits(experiment, ActivationPatch(site, experiment.x, experiment.mask))
    left = plain_kl(experiment.answers.clean, expected)
    assert (left < 1e-5) if site.stream is Stream.RESID_POST else (left > 0.01)
    x = torch.cat([experiment.x, experiment.x_bar]).flatten(0, 1)
    for dictionary in (dictionary_for(experiment), pca(x), nonnegative_pca(x)):
        below = floor(experiment.patching(dictionary))
        assert below["all_latents_and_error"] == pytest.approx(left, abs=2e-4)
        assert (below["all_latents"] != pytest.approx(left, abs=1e-3)) == (len(dictionary.directions) == 48)


def test_points_are_means_over_prompts(one):
    sae, latents = random_topk(32), list(range(10, 40))
    point, rows = curve(one, sae, latents, [30])[0], reference(one, sae, latents)
    assert point.kl == pytest.approx(rows[:, 0].mean().item(), rel=1e-3)
    patched, clean, corrupted = (own.mean().item() for own in (rows[:, 1], one.clean[:, 1], one.corrupted[:, 1]))
    assert point.recovered == pytest.approx((patched - corrupted) / (clean - corrupted), rel=1e-3, abs=1e-4)
    assert point.probability == pytest.approx(rows[:, 2].mean().item(), rel=1e-3)
    assert point.edit_size == pytest.approx(rows[:, 3].mean().item(), rel=1e-3)


def test_intervals_resample_groups(tiny_models):
    """Every number's interval is the quantiles of its own formula, written out for every resample of the groups."""
    model, sae = tiny_models["neox"], random_topk(32)
    pairs = random_pairs(model)
    for groups in ([0, 0, 0], [0, 1, 1]):
        experiment = PatchExperiment(model, replace(pairs, groups=torch.tensor(groups)), RESID)
        (point,), rows = curve(experiment, sae, range(48), [30]), reference(experiment, sae, list(range(30))).double()
        weights = resampled(groups, 0)
        clean, corrupted = (weights @ own[:, 1].double() for own in (experiment.clean, experiment.corrupted))
        kl, patched, probability, size = (weights @ rows).T
        drawn = {"kl": kl, "recovered": (patched - corrupted) / (clean - corrupted), "probability": probability}
        for name, values in (drawn | {"edit_size": size}).items():
            assert point.intervals[name] == pytest.approx(interval(values).tolist(), rel=1e-2, abs=1e-3)
    assert not torch.equal(*(resampled(groups, 0) for groups in ([0, 0, 0], [0, 1, 1])))


def test_recovered_has_no_value_where_the_runs_do_not_differ(tiny_models):
    model = tiny_models["neox"]
    pairs = random_pairs(model)
    (point,) = curve(PatchExperiment(model, replace(pairs, foil=pairs.answer), RESID), random_topk(32), range(48), [9])
    assert math.isnan(point.recovered) and point.kl > 0


def test_adding_features_never_changes_earlier_points(one):
    sae, order = random_topk(32), list(range(48))
    short = curve(one, sae, order, [0, 1, 4])
    for ours, theirs in zip(curve(one, sae, order, [0, 1, 4, 30, 48]), short, strict=False):
        assert (ours.kl, ours.recovered) == pytest.approx((theirs.kl, theirs.recovered), rel=1e-5)
        assert ours.edit_size == theirs.edit_size
    jump = curve(one, sae, order, [4])[0]
    assert jump.kl == pytest.approx(short[2].kl, rel=1e-4) and jump.edit_size == pytest.approx(short[2].edit_size)


def test_default_counts_rise_from_none_to_all():
    for n in (1, 5, 16, 17, 100, 512, 20_000):
        counts = default_counts(n)
        assert counts[0] == 0 and counts[-1] == n and counts == sorted(set(counts))
        assert [c for c in counts if c <= 16] == list(range(min(n, 16) + 1))


# ---- bad input -------------------------------------------------------------------------------------


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


def test_features_of_another_site_are_refused(one):
    with user_error("width 64", "resid_post.1", "width 32"):
        one.patching(random_topk(64))


# ---- the estimate ----------------------------------------------------------------------------------


@SITES
def test_the_estimate_is_the_derivative_of_the_kl(tiny, site):
    """-d KL / dt at t = 0 when one latent alone is moved by t (c - c_bar), by central differences."""
    experiment, step = PatchExperiment(tiny, random_pairs(tiny), site), 0.01
    patching, everyone = experiment.patching(random_topk(experiment.x.shape[-1], 24)), torch.arange(3)

    def kl(sign: int) -> torch.Tensor:
        trials = ((everyone, sign * step * patching.of(j, everyone)) for j in range(24))
        return patching.table(trials)[..., KL].mean(1)

    got, expected = patching.first_order(), (kl(-1) - kl(1)) / (2 * step)
    assert expected.abs().max() > 1e-3
    assert (got - expected).abs().max() < 0.02 * expected.abs().max() + 1e-4
    assert (got[~patching.differs.any(0)] == 0).all()
