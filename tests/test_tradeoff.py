"""The IOI curve: the fast path against full forwards from the formula, its two ends, and every site and stream."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from handmade import complete_basis, random_topk
from test_models import close
from tiny import random_tokens, user_error

from editing import memory
from editing.memory import peak_bytes, rows_at_once
from editing.patch import ActivationPatch, FeaturePatch
from editing.tasks.pairs import PromptPairs, at_end
from editing.tradeoff import KL, PROBABILITY, PatchExperiment, curve, default_counts, floor, trace
from sae_core.dictionaries import nonnegative_pca, pca
from sae_core.sites import Site, Stream

RESID = Site(1)
PLACES = [
    RESID,
    Site(0, Stream.MLP_OUT),
    Site(1, Stream.MLP_HIDDEN),
    Site(0, Stream.ATTN_OUT),
    Site(1, Stream.ATTN_OUT),
]
SITES = pytest.mark.parametrize("site", PLACES, ids=str)


def random_pairs(model, n: int = 3) -> PromptPairs:
    """Prompts of different lengths that begin with BOS and differ from position 2 on."""
    clean, corrupted = (random_tokens(model.n_vocab, n, 9, seed=seed) for seed in (1, 2))
    clean[:, 0] = model.bos_id
    corrupted[:, :2] = clean[:, :2]
    answer, foil = torch.arange(2, 2 + n), torch.arange(20, 20 + n)
    return PromptPairs("random", clean, corrupted, answer, foil, foil, torch.tensor([8, 5, 6])[:n])


@pytest.fixture
def experiment(tiny) -> PatchExperiment:
    return PatchExperiment(tiny, random_pairs(tiny), RESID)


@pytest.fixture(scope="module")
def one(tiny_models) -> PatchExperiment:
    return PatchExperiment(tiny_models["neox"], random_pairs(tiny_models["neox"]), RESID)


def full_logits(experiment: PatchExperiment, *edits) -> torch.Tensor:
    """Logits at the answer, from the tokens of the corrupted run."""
    with experiment.model.hooks(*edits):
        return at_end(experiment.model.logits(experiment.pairs.corrupted), experiment.pairs.end)


def patch(experiment: PatchExperiment, dictionary, latents: list[int]) -> FeaturePatch:
    """The latents to their clean codes, at the content positions up to the answer."""
    latents = torch.tensor(latents, dtype=torch.long)
    codes = dictionary.encode(experiment.x)[..., latents]
    return FeaturePatch(experiment.site, dictionary, latents, codes, experiment.mask)


def plain_kl(clean: torch.Tensor, edited: torch.Tensor) -> float:
    """Mean KL(clean || edited) over prompts, by torch's own."""
    p, q = clean.log_softmax(-1), edited.log_softmax(-1)
    return F.kl_div(q, p, log_target=True, reduction="batchmean").item()


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
    found = trace(experiment, sae, order, counts)
    for row, count in enumerate(counts):
        expected = reference(experiment, sae, order[:count]).double()
        close(found.readout[row], expected[:, :3], 2e-4)
        close(found.edit_size[row], expected[:, 3], 1e-4)
    assert (found.readout[0] - found.readout[3]).abs().max() > 1e-3  # control


@SITES
def test_first_of_a_route_is_checked_not_assumed(tiny, kind, site):
    """A change of the MLP's output is one of the residual; attention's only where blocks are parallel."""
    adds = PatchExperiment(tiny, random_pairs(tiny), site).adds
    assert adds == (
        site.stream in (Stream.RESID_POST, Stream.MLP_OUT) or (kind == "neox" and site.stream == "attn_out")
    )


def test_the_reference_runs_are_the_models_own(experiment):
    model, pairs = experiment.model, experiment.pairs
    close(experiment.corrupted_logits, at_end(model.logits(pairs.corrupted), pairs.end))
    close(experiment.clean_logits, at_end(model.logits(pairs.clean), pairs.end))
    assert (experiment.clean[:, KL] == 0).all() and (experiment.corrupted[:, KL] > 0).all()
    p = experiment.clean_logits.softmax(-1)
    close(experiment.clean[:, PROBABILITY], p[torch.arange(3), pairs.answer])


def test_edited_are_the_content_positions_up_to_the_answer(one):
    expected = torch.zeros(3, 9, dtype=torch.bool)
    for row, end in enumerate((8, 5, 6)):
        expected[row, 1 : end + 1] = True
    assert torch.equal(one.mask, expected)
    assert (one.differences(random_topk(32))[~expected] == 0).all()


def test_positions_count_from_each_prompts_end(tiny_models):
    model = tiny_models["neox"]
    pairs = random_pairs(model)
    last = PatchExperiment(model, pairs, RESID, [-1])
    assert [row.nonzero()[:, 0].tolist() for row in last.mask] == [[8], [5], [6]]
    few = PatchExperiment(model, pairs, RESID, [-2, -1, -6])  # BOS stands at -6 of the second
    assert [row.nonzero()[:, 0].tolist() for row in few.mask] == [[3, 7, 8], [4, 5], [1, 5, 6]]
    sae = random_topk(32)
    close(trace(few, sae, range(48), [20]).readout[0], reference(few, sae, list(range(20)))[:, :3].double(), 2e-4)
    for wrong in (0, 3, -7):
        with user_error("position", "from the end"):
            PatchExperiment(model, pairs, RESID, [wrong])


@SITES
def test_rows_do_not_notice_how_they_are_stacked(tiny_models, site):
    experiment = PatchExperiment(tiny_models["gpt2"], random_pairs(tiny_models["gpt2"]), site)
    sae = dictionary_for(experiment)
    expected = trace(experiment, sae, range(48), list(range(49)))
    for at_once in (1, 4, 1000):
        experiment.at_once = at_once
        close(trace(experiment, sae, range(48), list(range(49))).readout, expected.readout, 1e-4)


def test_a_prompt_on_which_nothing_was_added_is_not_run_again(one, monkeypatch):
    sae, ran = random_topk(32), []
    differs = one.differences(sae).ne(0).any(1)
    read = one.read
    monkeypatch.setattr(one, "read", lambda rows, change: ran.append(len(rows)) or read(rows, change))
    trace(one, sae, range(48), range(49))
    assert sum(ran) == differs.sum() < 0.9 * differs.numel()


# ---- memory ----------------------------------------------------------------------------------------


def test_peak_bytes_counts_what_lives_at_one_time():
    def apart():
        for _ in range(5):
            torch.zeros(1000)

    def together():
        return [torch.zeros(1000) for _ in range(5)]

    def in_place():
        x = torch.zeros(1000)
        x += 1
        return x.view(10, 100).T

    assert peak_bytes(apart) == peak_bytes(in_place) == 4_000 and peak_bytes(together) == 20_000


def test_passes_stay_within_their_memory(one, monkeypatch):
    """The real peak of the passes of a curve, with budgets for a few rows and for many."""
    for budget in (2**17, 2**20):
        monkeypatch.setattr(memory, "MEMORY", budget)
        fresh = PatchExperiment(one.model, one.pairs, one.site)
        rows = torch.arange(3).repeat(fresh.at_once)[: fresh.at_once]
        change = torch.zeros(len(rows), 9, 32)
        assert 0.5 * budget < peak_bytes(partial(fresh.read, rows, change)) <= budget
        assert trace(fresh, random_topk(32), range(48), [5]).readout.isfinite().all()


def test_at_least_one_row_is_run():
    assert rows_at_once(lambda n: torch.zeros(n, 100), 4_000) == 10
    assert rows_at_once(lambda n: torch.zeros(n, 100), 1) == 1


# ---- the ends of the curve -------------------------------------------------------------------------


def test_the_curve_begins_at_the_corrupted_run(experiment):
    start = curve(experiment, random_topk(32), range(48), [0, 5], "any").points[0]
    assert start.n_features == start.recovered == start.edit_size == 0
    assert start.intervals["recovered"] == pytest.approx((0, 0), abs=1e-9)
    assert start.intervals["kl"][0] <= start.kl <= start.intervals["kl"][1]
    assert start.kl == pytest.approx(plain_kl(experiment.clean_logits, experiment.corrupted_logits), rel=1e-4)
    assert start.kl > 0.1


def test_a_complete_basis_ends_at_the_clean_run(experiment):
    for dictionary in (complete_basis(32), pca(experiment.x.flatten(0, 1)[:27])):
        end = curve(experiment, dictionary, range(32), [0, 16, 32], "basis").points[-1]
        assert end.kl == pytest.approx(0, abs=1e-4) and end.recovered == pytest.approx(1, abs=1e-3)
        sizes = (experiment.x - experiment.x_bar).norm(dim=-1)
        whole = sum(own[mask].mean().item() for own, mask in zip(sizes, experiment.mask, strict=True)) / 3
        assert end.edit_size == pytest.approx(whole, rel=1e-4)


def test_a_sparse_dictionary_ends_at_the_floor(experiment):
    sae = random_topk(32)
    end = curve(experiment, sae, range(48), [0, 10, 48], "sae").points[-1]
    below = floor(experiment, sae)
    assert end.kl == pytest.approx(below["all_latents"], rel=1e-4)
    assert below["nothing"] == pytest.approx(plain_kl(experiment.clean_logits, experiment.corrupted_logits), rel=1e-4)
    assert below["all_latents_and_error"] == pytest.approx(0, abs=1e-4)
    assert below["all_latents"] > 0.05  # control: without the error it is not the clean run


@SITES
def test_everything_patched_is_the_clean_activation_in_the_corrupted_run(tiny, site):
    """At residual sites that is the clean run; the complete decompositions get there with their latents alone."""
    experiment = PatchExperiment(tiny, random_pairs(tiny), site)
    expected = full_logits(experiment, ActivationPatch(site, experiment.x, experiment.mask))
    left = plain_kl(experiment.clean_logits, expected)
    assert (left < 1e-5) if site.stream is Stream.RESID_POST else (left > 0.01)
    x = torch.cat([experiment.x, experiment.x_bar]).flatten(0, 1)
    for dictionary in (dictionary_for(experiment), pca(x), nonnegative_pca(x)):
        below = floor(experiment, dictionary)
        assert below["all_latents_and_error"] == pytest.approx(left, abs=2e-4)
        assert (below["all_latents"] != pytest.approx(left, abs=1e-3)) == (len(dictionary.directions) == 48)


def test_points_are_means_over_prompts(one):
    sae, latents = random_topk(32), list(range(10, 40))
    point, rows = curve(one, sae, latents, [30], "one set").points[0], reference(one, sae, latents)
    assert point.kl == pytest.approx(rows[:, 0].mean().item(), rel=1e-3)
    patched, clean, corrupted = (own.mean().item() for own in (rows[:, 1], one.clean[:, 1], one.corrupted[:, 1]))
    assert point.recovered == pytest.approx((patched - corrupted) / (clean - corrupted), rel=1e-3, abs=1e-4)
    assert point.probability == pytest.approx(rows[:, 2].mean().item(), rel=1e-3)
    assert point.edit_size == pytest.approx(rows[:, 3].mean().item(), rel=1e-3)


def test_intervals_resample_groups(tiny_models):
    """With all prompts of one template its members are resampled; with two, an interval joins the templates' means."""
    model = tiny_models["neox"]
    pairs = random_pairs(model)
    one_group, two = (
        curve(
            PatchExperiment(model, replace(pairs, groups=torch.tensor(g)), RESID), random_topk(32), range(48), [30], ""
        )
        for g in ([0, 0, 0], [0, 1, 1])
    )
    assert one_group.points[0].kl == two.points[0].kl
    assert one_group.points[0].intervals["kl"] != two.points[0].intervals["kl"]
    for own in (one_group, two):
        low, high = own.points[0].intervals["kl"]
        assert low < own.points[0].kl < high


def test_recovered_has_no_value_where_the_runs_do_not_differ(tiny_models):
    model = tiny_models["neox"]
    pairs = random_pairs(model)
    point = curve(PatchExperiment(model, replace(pairs, foil=pairs.answer), RESID), random_topk(32), range(48), [9], "")
    assert math.isnan(point.points[0].recovered) and point.points[0].kl > 0


def test_adding_features_never_changes_earlier_points(one):
    sae, order = random_topk(32), list(range(48))
    short = curve(one, sae, order, [0, 1, 4], "short").points
    for ours, theirs in zip(curve(one, sae, order, [0, 1, 4, 30, 48], "long").points, short, strict=False):
        assert (ours.kl, ours.recovered) == pytest.approx((theirs.kl, theirs.recovered), rel=1e-5)
        assert ours.edit_size == theirs.edit_size
    jump = curve(one, sae, order, [4], "jump").points[0]
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
    wide = random_topk(64)
    for use in (lambda: one.first_order(wide), lambda: trace(one, wide, [0], [1]), lambda: floor(one, wide)):
        with user_error("width 64", "resid_post.1", "width 32"):
            use()


# ---- the estimate ----------------------------------------------------------------------------------


@SITES
def test_the_estimate_is_the_derivative_of_the_kl(tiny, site):
    """-d KL / dt at t = 0 when one latent alone is moved by t (c - c_bar), by central differences."""
    experiment, step = PatchExperiment(tiny, random_pairs(tiny), site), 0.01
    sae = random_topk(experiment.x.shape[-1], 24)
    moves = experiment.differences(sae)
    everyone = torch.arange(3)

    def kl(sign: int) -> torch.Tensor:
        trials = ((everyone, sign * step * moves[..., j, None] * sae.directions[j]) for j in range(24))
        return experiment.table(trials)[..., KL].mean(1)

    got, expected = experiment.first_order(sae), (kl(-1) - kl(1)) / (2 * step)
    assert expected.abs().max() > 1e-3
    assert (got - expected).abs().max() < 0.02 * expected.abs().max() + 1e-4
    assert (got[~moves.ne(0).flatten(0, 1).any(0)] == 0).all()
