"""The IOI curve: the fast path against full forwards, greedy search against brute force, and its two ends."""

import pytest
import torch
import torch.nn.functional as F
from handmade import complete_basis, random_topk
from test_models import close
from tiny import random_tokens, user_error

from editing import tradeoff
from editing.ioi import IOIConfig, IOIResult, run_ioi
from editing.patch import ActivationPatch, FeaturePatch
from editing.tasks.ioi import Corruption, IOITask
from editing.tasks.pairs import PromptPairs, at_end
from editing.tradeoff import PatchExperiment, choose, curve, default_counts, floor
from sae_core.activations import harvest
from sae_core.dictionaries import pca
from sae_core.sites import Site, Stream
from sae_core.text import Text

RESID, MLP = Site(1), Site(0, Stream.MLP_OUT)
SITES = pytest.mark.parametrize("site", [RESID, MLP], ids=str)


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


def change_of(experiment: PatchExperiment, dictionary, latents: list[int]) -> torch.Tensor:
    return experiment.differences(dictionary)[..., latents] @ dictionary.directions[latents]


def plain_kl(clean: torch.Tensor, edited: torch.Tensor) -> float:
    """Mean KL(clean || edited) over prompts, by torch's own."""
    p, q = clean.log_softmax(-1), edited.log_softmax(-1)
    return F.kl_div(q, p, log_target=True, reduction="batchmean").item()


# ---- the fast path ---------------------------------------------------------------------------------


@SITES
def test_a_change_equals_a_feature_patch_in_a_full_forward(tiny, site):
    experiment, sae = PatchExperiment(tiny, random_pairs(tiny), site), random_topk(32)
    differs = experiment.differences(sae).ne(0).any(0).any(0).nonzero()[:, 0].tolist()
    sets = [differs[:1], differs[:5], differs, list(range(48))]
    got = experiment.logits(torch.stack([change_of(experiment, sae, latents) for latents in sets]))
    for logits, latents in zip(got, sets, strict=True):
        close(logits, full_logits(experiment, patch(experiment, sae, latents)), 1e-4)
    assert (got[0] - got[1]).abs().max() > 1e-3 and (got[1] - got[2]).abs().max() > 1e-3  # control


def test_the_reference_runs_are_the_models_own(experiment):
    model, pairs = experiment.model, experiment.pairs
    close(experiment.corrupted_logits, at_end(model.logits(pairs.corrupted), pairs.end))
    close(experiment.clean_logits, at_end(model.logits(pairs.clean), pairs.end))
    close(experiment.logits(torch.zeros_like(experiment.residual)[None])[0], experiment.corrupted_logits, 1e-4)


def test_edited_are_the_content_positions_up_to_the_answer(one):
    expected = torch.zeros(3, 9, dtype=torch.bool)
    for row, end in enumerate((8, 5, 6)):
        expected[row, 1 : end + 1] = True
    assert torch.equal(one.mask, expected)
    assert (one.differences(random_topk(32))[~expected] == 0).all()


def test_trials_do_not_notice_how_they_are_stacked(one, monkeypatch):
    sae = random_topk(32)
    changes = torch.stack([change_of(one, sae, [j]) for j in range(10)])
    expected = one.logits(changes)
    for at_once in (1, 60, 100):
        monkeypatch.setattr(tradeoff, "AT_ONCE", at_once)
        close(one.logits(changes), expected)


@pytest.mark.parametrize("stream", [Stream.ATTN_OUT, Stream.MLP_HIDDEN])
def test_streams_that_do_not_add_to_the_residual_are_refused(tiny_models, stream):
    model = tiny_models["gpt2"]
    with user_error(f"{stream}.1", "resid_post", "mlp_out"):
        PatchExperiment(model, random_pairs(model), Site(1, stream))


# ---- the ends of the curve -------------------------------------------------------------------------


def test_the_curve_begins_at_the_corrupted_run(experiment):
    start = curve(experiment, random_topk(32), range(48), [0, 5], "any").points[0]
    assert start.n_features == start.recovered == start.edit_size == 0
    assert start.kl == pytest.approx(plain_kl(experiment.clean_logits, experiment.corrupted_logits), rel=1e-4)
    assert start.kl > 0.1


def test_a_complete_basis_ends_at_the_clean_run(experiment):
    for dictionary in (complete_basis(32), pca(experiment.x.flatten(0, 1)[:27])):
        end = curve(experiment, dictionary, range(32), [0, 16, 32], "basis").points[-1]
        assert end.kl == pytest.approx(0, abs=1e-4) and end.recovered == pytest.approx(1, abs=1e-3)
        whole = (experiment.x - experiment.x_bar).norm(dim=-1)[experiment.mask].mean().item()
        assert end.edit_size == pytest.approx(whole, rel=1e-4)


def test_a_sparse_dictionary_ends_at_the_floor(experiment):
    sae = random_topk(32)
    end = curve(experiment, sae, range(48), [0, 10, 48], "sae").points[-1]
    below = floor(experiment, sae)
    assert end.kl == pytest.approx(below["all_latents"], rel=1e-4)
    assert below["nothing"] == pytest.approx(plain_kl(experiment.clean_logits, experiment.corrupted_logits), rel=1e-4)
    assert below["all_latents_and_error"] == pytest.approx(0, abs=1e-4)
    assert below["all_latents"] > 0.05  # control: without the error it is not the clean run


def test_the_floor_of_an_mlp_is_what_the_site_does_not_carry(tiny):
    experiment = PatchExperiment(tiny, random_pairs(tiny), MLP)
    expected = full_logits(experiment, ActivationPatch(MLP, experiment.x, experiment.mask))
    below = floor(experiment, random_topk(32))["all_latents_and_error"]
    assert below == pytest.approx(plain_kl(experiment.clean_logits, expected), rel=1e-3)
    assert below > 0.05


def test_points_by_hand(one):
    """KL, recovered difference and size of one set, each from its definition."""
    sae, latents = random_topk(32), list(range(10, 40))
    point = curve(one, sae, latents, [30], "one set").points[0]
    logits = full_logits(one, patch(one, sae, latents))
    clean, corrupted, patched = (
        sum(float(values[row, one.answer[row]] - values[row, one.foil[row]]) for row in range(3)) / 3
        for values in (one.clean_logits, one.corrupted_logits, logits)
    )
    sizes = []
    for row, end in enumerate((8, 5, 6)):
        for pos in range(1, end + 1):
            before, after = (sae.encode(x[row, pos]) for x in (one.x_bar, one.x))
            sizes.append(float(sum((after[j] - before[j]) * sae.directions[j] for j in latents).norm()))
    assert point.kl == pytest.approx(plain_kl(one.clean_logits, logits), rel=1e-3)
    assert point.recovered == pytest.approx((patched - corrupted) / (clean - corrupted), rel=1e-3, abs=1e-4)
    assert point.edit_size == pytest.approx(sum(sizes) / len(sizes), rel=1e-4)


def test_adding_features_never_changes_earlier_points(one):
    sae, order = random_topk(32), list(range(48))
    short = curve(one, sae, order, [0, 1, 4], "short").points
    assert curve(one, sae, order, [0, 1, 4, 30, 48], "long").points[:3] == short
    jump = curve(one, sae, order, [4], "jump").points[0]
    assert jump.kl == pytest.approx(short[2].kl, rel=1e-4) and jump.edit_size == pytest.approx(short[2].edit_size)


def test_default_counts_rise_from_none_to_all():
    for n in (1, 5, 16, 17, 100, 512, 20_000):
        counts = default_counts(n)
        assert counts[0] == 0 and counts[-1] == n and counts == sorted(set(counts))
        assert [c for c in counts if c <= 16] == list(range(min(n, 16) + 1))


# ---- choosing --------------------------------------------------------------------------------------


@SITES
def test_the_estimate_is_the_derivative_of_the_kl(tiny, site):
    """-d KL / dt at t = 0 when one latent alone is moved by t (c - c_bar), by central differences."""
    experiment, sae, step = PatchExperiment(tiny, random_pairs(tiny), site), random_topk(32, 24), 0.01
    got = experiment.first_order(sae)
    changes = torch.stack([change_of(experiment, sae, [j]) for j in range(24)])
    ahead, behind = (experiment.kl(experiment.logits(sign * step * changes)) for sign in (1, -1))
    expected = (behind - ahead) / (2 * step)
    assert expected.abs().max() > 0.01
    assert (got - expected).abs().max() < 0.01 * expected.abs().max() + 1e-4
    same = ~experiment.differences(sae).ne(0).any(0).any(0)
    assert (got[same] == 0).all()


def plain_greedy(experiment: PatchExperiment, dictionary, shortlist: list[int], n: int) -> list[int]:
    """Keep the latent after which the KL is least, every trial a full forward from the tokens."""
    chosen: list[int] = []
    for _ in range(n):
        trials = {}
        for latent in shortlist:
            if latent not in chosen:
                logits = full_logits(experiment, patch(experiment, dictionary, [*chosen, latent]))
                trials[latent] = plain_kl(experiment.clean_logits, logits)
        chosen.append(min(trials, key=trials.get))
    return chosen


@pytest.mark.parametrize("make", [random_topk, complete_basis], ids=["sae", "basis"])
def test_the_first_features_are_those_of_a_brute_force_search(experiment, make):
    dictionary = make(32)
    ranked = experiment.first_order(dictionary).argsort(descending=True, stable=True).tolist()
    order, forwards = choose(experiment, dictionary, n_greedy=3, shortlist=6)
    assert order[:3] == plain_greedy(experiment, dictionary, ranked[:6], 3)
    assert order[3:] == [j for j in ranked if j not in order[:3]]  # the rest by estimate, each once
    assert sorted(order) == list(range(len(dictionary.directions)))
    assert forwards == 3 * (2 + 6 + 5 + 4)


def test_without_greedy_search_the_estimate_alone_decides(one):
    sae = random_topk(32)
    assert choose(one, sae, n_greedy=0)[0] == one.first_order(sae).argsort(descending=True, stable=True).tolist()


def test_features_that_do_not_differ_are_never_tried(one):
    """With fewer differing features than asked for, the search ends, and the others come last but for estimates < 0."""
    sae = random_topk(32)
    differs = one.differences(sae).ne(0).any(0).any(0)
    order, _ = choose(one, sae, n_greedy=48, shortlist=48)
    assert 0 < differs.sum() < 48 and sorted(order) == list(range(48))
    assert differs[order[: int(differs.sum())]].all()


# ---- from end to end -------------------------------------------------------------------------------


CONFIG = IOIConfig(selection_prompts=6, test_prompts=8, n_greedy=3, shortlist=6, random_draws=2)
NAMES = ["dictionary", "PCA", "neurons", "random basis", "random subsets"]


@pytest.fixture(scope="module")
def few_contexts(storybook):
    return Text("storybook", 48, True, 10 * 48).contexts(storybook)


def run(storybook, contexts, corruption=Corruption.IO, config=CONFIG, **where) -> tuple[list[str], IOIResult]:
    x = harvest(storybook, contexts, (Site(1),))[Site(1)]
    dictionaries = {Site(1): pca(x), Site(3): random_topk(128, 96, 8), Site(2, Stream.ATTN_OUT): random_topk(128)}
    *lines, result = run_ioi(storybook, dictionaries, contexts, corruption, config, **where)
    return lines, result


@pytest.mark.parametrize("corruption", Corruption)
def test_the_experiment_on_storybook(storybook, few_contexts, corruption):
    lines, result = run(storybook, few_contexts, corruption)
    assert all(isinstance(line, str) for line in lines) and isinstance(result, IOIResult)
    assert [c.name for c in result.curves] == NAMES and result.corruption is corruption
    assert result.own.accuracy >= 0.99 and result.own.n == result.n_test == 8 and result.n_selection == 6
    assert set(result.site_kl) == {"resid_post.1", "resid_post.3"}  # attention is not patched
    assert result.site == min(result.site_kl, key=result.site_kl.get)
    for own in result.curves:
        assert own.points[0].kl == pytest.approx(result.floor["nothing"], rel=1e-3) and own.points[0].recovered == 0
        sizes = [p.n_features for p in own.points]
        assert sizes == default_counts(sizes[-1])
    for complete in result.curves[1:4]:
        assert complete.points[-1].n_features == 128
        assert complete.points[-1].kl == pytest.approx(0, abs=1e-3)
        assert complete.points[-1].recovered == pytest.approx(1, abs=1e-2)
    for same in (result.curves[0], result.curves[4]):
        assert same.points[-1].kl == pytest.approx(result.floor["all_latents"], rel=1e-2, abs=1e-4)
    assert result.floor["all_latents_and_error"] == pytest.approx(0, abs=1e-3)


def test_the_site_can_be_given_and_the_seed_decides(storybook, few_contexts):
    _, result = run(storybook, few_contexts, site=Site(3))
    assert result.site == "resid_post.3" and list(result.site_kl) == ["resid_post.3"]
    assert result.curves[0].points[-1].n_features == 96
    assert run(storybook, few_contexts, site=Site(3))[1] == result


def test_features_are_chosen_without_the_test_prompts(storybook, few_contexts):
    """Their order is that on the selection prompts, whatever the number of test prompts."""
    task, sae = IOITask.of(storybook), random_topk(128, 96, 8)
    pairs = task.pairs(storybook, Corruption.IO, "selection", 6, seed=0)
    order, _ = choose(PatchExperiment(storybook, pairs, Site(3)), sae, n_greedy=3, shortlist=6)
    _, result = run(storybook, few_contexts, site=Site(3))
    assert result.curves[0].order == tuple(order[:32])


def test_a_set_without_a_site_to_patch_is_refused(storybook, few_contexts):
    dictionaries = {Site(2, Stream.ATTN_OUT): random_topk(128)}
    with user_error("resid_post", "attn_out.2"):
        list(run_ioi(storybook, dictionaries, few_contexts, Corruption.IO, CONFIG))


def test_a_site_without_a_dictionary_is_refused(storybook, few_contexts):
    with user_error("resid_post.5", "resid_post.1"):
        run(storybook, few_contexts, site=Site(5))
