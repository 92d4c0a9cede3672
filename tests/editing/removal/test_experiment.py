"""Removing a capability: what an edit is charged with, who may see which names, and a planted latent to be found."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import pytest
import torch
from comparing import close
from handmade import HandModel, Zero, random_topk
from tiny import random_tokens, user_error

from editing.interventions.compose import Scaled, unscaled
from editing.interventions.erase import fit_leace
from editing.interventions.patch import ablate, clamp
from editing.metrics import auroc
from editing.removal import cached_runs as ground
from editing.removal import capability
from editing.removal import feature_search as candidates
from editing.removal.cached_runs import Elsewhere, Ground, Harm, Runs, changes, up_to_end
from editing.removal.capability import NO_CONCEPT, Capability, capability_of, of_pairs
from editing.removal.erasers import ERASERS, fit_at, fit_everywhere
from editing.removal.evaluation import GONE, Judge, Method, Removal, probe
from editing.removal.experiment import RemovalConfig, RemovalResult, remove, remove_pronouns
from editing.removal.feature_search import (
    GRID,
    affordable_strength,
    choose_features,
    highest,
    like_density,
    meeting_strength,
)
from editing.removal.frontier import Frontier, FrontierPoint
from editing.removal.random_controls import at_size, mean_of
from editing.removal.two_class_prompts import Contrast
from editing.removal.versus_leace import LeaceComparison, verdict
from editing.tasks.pairs import PromptPairs, at_end
from editing.tasks.pronouns import PRONOUNS
from sae_core.codec import from_plain
from sae_core.data.activations import harvest
from sae_core.data.text import Text
from sae_core.dictionaries.baselines import Basis, pca
from sae_core.estimate import Estimate
from sae_core.model.language_model import Intervention, load_model
from sae_core.progress import Progress
from sae_core.sites import Site, Stream

LAST, MIDDLE, MLP = Site(5), Site(3), Site(1, Stream.MLP_OUT)
CONFIG = RemovalConfig(
    selection_prompts=32,
    test_prompts=48,
    greedy_prompts=32,
    shortlist=6,
    max_features=2,
    text_contexts=8,
    random_draws=1,
    budget=2.0,
    strengths=(0.0, 0.5, 1.0),
)


@pytest.fixture(scope="module")
def contexts(storybook):
    return Text("storybook", 48, True, 12 * 48).contexts(storybook)


@pytest.fixture(scope="module")
def task(storybook) -> Capability:
    """Pronouns, with fewer prompts to fit erasers on than there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capability, "EVERYTHING", 192)
        return capability_of("pronouns", storybook, n_selection=32, n_test=48, seed=0)


@pytest.fixture(scope="module")
def components(storybook, contexts):
    """PCA of each site."""
    return {site: pca(x) for site, x in harvest(storybook, contexts, (MIDDLE, MLP)).items()}


@pytest.fixture(scope="module")
def elsewhere(storybook, task, contexts) -> Elsewhere:
    return Elsewhere(storybook, contexts[:4], task.due)


@pytest.fixture(scope="module")
def judge(storybook, task, elsewhere) -> Judge:
    return Judge(storybook, task.test, elsewhere, seed=0, transfers=task.transfers, halves=task.test.halves())


@pytest.fixture(scope="module")
def at_middle(storybook, task) -> Ground:
    return Ground.of(storybook, MIDDLE, task.selection)


@pytest.fixture(params=[MIDDLE, MLP], ids=str)
def site(request) -> Site:
    return request.param


# ---- what an edit is charged with ------------------------------------------------------------------


def holds_its_value(estimate: Estimate) -> bool:
    return estimate.low - 1e-9 <= estimate.value <= estimate.high + 1e-9


def plain_scores(model, prompts: Contrast, *edits) -> torch.Tensor:
    """logit(she) - logit(he) after each prompt alone, from its tokens, edited at all content positions."""
    scores = []
    for row, end, yes, no in zip(prompts.tokens, prompts.end, prompts.yes, prompts.no, strict=True):
        tokens = row[None, : int(end) + 1]
        with torch.no_grad(), model.hooks(*(replace(edit, mask=model.content(tokens)) for edit in edits)):
            logits = model.logits(tokens)[0, -1]
        scores.append(logits[yes] - logits[no])
    return torch.stack(scores)


def plain_damage(model, text: torch.Tensor, *edits, limit: float = 0.01) -> tuple[float, float]:
    """Mean KL per content token at which the unedited model gives all pronouns together less than `limit`; and the
    mean rise of the next content token's cross-entropy there."""
    pronouns = [model.to_ids(f" {word}")[0] for word in PRONOUNS]
    pronouns = [i for i in set(pronouns) if i != model.tokenizer.unk_token_id]
    before = model.logits(text).log_softmax(-1)
    with model.hooks(*(replace(edit, mask=model.content(text)) for edit in edits)):
        after = model.logits(text).log_softmax(-1)
    kl, rise = [], []
    for row in range(text.shape[0]):
        for pos in range(text.shape[1]):
            p, q = before[row, pos].double(), after[row, pos].double()
            if int(text[row, pos]) not in model.special_ids and p.exp()[pronouns].sum() < limit:
                kl.append((p.exp() * (p - q)).sum().item())
                if pos + 1 < text.shape[1] and int(text[row, pos + 1]) not in model.special_ids:
                    rise.append((p - q)[text[row, pos + 1]].item())
    return sum(kl) / len(kl), sum(rise) / len(rise)


def test_an_edit_of_strength_zero_changes_nothing_exactly(storybook, judge, task, components, site):
    edit = ablate(site, components[site], list(range(40)))
    none, scores = judge.judge([Scaled(edit, 0.0)], Method.NONE)[0], plain_scores(storybook, task.test)
    assert none.edit_size == 0
    for estimate in (none.damage, none.rise):
        assert astuple(estimate) == pytest.approx((0, 0, 0), abs=1e-9)
    assert none.auroc.value == auroc(scores, task.test.positive) == none.accuracy.value == 1.0 and not none.gone
    read = [*none.transfer.values(), none.probe, none.probe_last]
    assert {estimate.value for estimate in read} == {1.0}
    some = judge.judge([edit], Method.FEATURES)[0]  # control
    assert some.edit_size > 0.1 and some.damage.value > 1e-4


def test_capability_and_damage_equal_those_of_full_forwards(storybook, judge, task, contexts, components, site):
    edit = ablate(site, components[site], [0, 1, 2, *range(5, 40)])
    judged, scores = judge.judge([edit], Method.FEATURES)[0], plain_scores(storybook, task.test, edit)
    here = Ground.of(storybook, site, task.test)
    close(here.scores(here.change(edit)[None])[0], scores, 1e-4)
    assert judged.auroc.value == pytest.approx(auroc(scores, task.test.positive), abs=0.01)
    assert judged.accuracy.value == pytest.approx(((scores > 0) == task.test.positive).double().mean().item(), abs=0.04)
    kl, rise = plain_damage(storybook, contexts[:4], edit)
    assert judged.damage.value == pytest.approx(kl, rel=1e-3) and kl > 1e-4
    assert judged.rise.value == pytest.approx(rise, rel=1e-3, abs=1e-5)
    place = "3" if site == MIDDLE else "mlp_out.1"
    assert judged.features[:2] == (f"{place}_0", f"{place}_1")


def test_transfer_equals_that_of_full_forwards(storybook, judge, task, components):
    edit = ablate(MIDDLE, components[MIDDLE], [1, *range(5, 60)])
    found = judge.judge([edit], Method.FEATURES)[0]
    assert [*found.transfer] == [*task.transfers] and len(task.transfers) == 2
    for name, prompts in task.transfers.items():
        area = auroc(plain_scores(storybook, prompts, edit), prompts.positive)
        assert found.transfer[name].value == pytest.approx(area, abs=0.02) and area < 0.99
        assert holds_its_value(found.transfer[name])


def test_the_sources_transfer_form_is_tested_on(storybook, task):
    for prompts, word in zip(task.transfers.values(), ("her", "she"), strict=True):
        assert prompts.yes.unique().tolist() == storybook.to_ids(f" {word}")
    row, end = (getattr(task.transfers["“… went to the store, and”"], name)[0] for name in ("tokens", "end"))
    assert storybook.tokenizer.decode(row[end - 5 : end - 2]).split() == ["went", "to", "the"]
    assert sum("transfer to" in note and "AUROC 1.000" in note for note in task.notes) == 2


def test_edits_at_several_layers_run_together(storybook, judge, task, contexts, components):
    edits = [ablate(site, components[site], list(range(30))) for site in (MLP, MIDDLE)]
    judged, scores = judge.brief(edits, Method.FEATURES)[0], plain_scores(storybook, task.test, *edits)
    assert judged.auroc.value == pytest.approx(auroc(scores, task.test.positive), abs=0.01)
    assert judged.damage.value == pytest.approx(plain_damage(storybook, contexts[:4], *edits)[0], rel=1e-3)
    alone = [judge.brief([edit], Method.FEATURES)[0] for edit in edits]
    assert judged.edit_size > max(one.edit_size for one in alone) and judged.site == "all layers"


def test_edit_size_is_the_mean_over_content_tokens_of_the_text(storybook, elsewhere, contexts, components):
    edit = ablate(MIDDLE, components[MIDDLE], [0, 3])
    x = harvest(storybook, contexts[:4], (MIDDLE,))[MIDDLE][None]
    expected = (edit(x) - x).norm(dim=-1).mean().item()
    assert elsewhere.harm([edit], 0).edit_size == pytest.approx(expected, rel=1e-4)
    half = elsewhere.harm([Scaled(Scaled(edit, 0.25), 2.0)], 0)  # the change of the unscaled edit is kept
    assert half.edit_size == pytest.approx(expected / 2, rel=1e-4)
    assert elsewhere.harm([edit], 0).edit_size == pytest.approx(expected, rel=1e-4)


def test_damage_is_counted_only_where_no_pronoun_is_due(storybook, task, elsewhere, contexts):
    """Control: with the positions at which pronouns are likely it would be another number."""
    here = Ground.of(storybook, LAST, task.selection)
    edit = fit_leace(LAST, at_end(here.x, here.prompts.end), task.selection.positive.long())
    damage = elsewhere.kl([edit])
    assert damage == pytest.approx(plain_damage(storybook, contexts[:4], edit)[0], rel=1e-3)
    assert abs(plain_damage(storybook, contexts[:4], edit, limit=2.0)[0] / damage - 1) > 0.02
    assert 0 < int(elsewhere.counted.sum()) < int(storybook.content(contexts[:4]).sum())


def test_logits_and_codes_of_text_are_made_a_few_at_a_time(storybook, task, contexts, monkeypatch):
    """Memory is bounded by numbers of logits and of codes, and the figures do not depend on them."""
    sae, logits, codes = random_topk(128), [], []
    edit = ablate(MIDDLE, sae, list(range(30)))
    text = Elsewhere(storybook, contexts[:4], task.due)
    whole, x, mask = text.harm([edit], 0), text.runs.at(MIDDLE)[0], text.runs.mask
    drawn = like_density(sae, x, mask, [0, 1], generator=torch.Generator().manual_seed(0))
    unembed, encode = storybook.unembed, type(sae).encode
    monkeypatch.setattr(storybook, "unembed", lambda h: (logits.append(h.numel() // h.shape[-1]), unembed(h))[1])
    monkeypatch.setattr(type(sae), "encode", lambda own, x: (codes.append(x.shape[:-1].numel()), encode(own, x))[1])
    monkeypatch.setattr(ground, "LOGITS_AT_ONCE", 20 * storybook.n_vocab)
    for place in (ground, candidates):
        monkeypatch.setattr(place, "CODES_AT_ONCE", 48 * len(sae.directions))
    few = Elsewhere(storybook, contexts[:4], task.due).harm([edit], 0)
    assert few.kl.value == pytest.approx(whole.kl.value, rel=1e-5)
    assert few.rise.value == pytest.approx(whole.rise.value, rel=1e-4)
    assert max(logits) <= 20 and len(logits) > 10 and codes == [48] * 4
    text = Elsewhere(storybook, contexts[:4], task.due)
    both = text.runs.edited([Scaled(edit, 0.5), ablate(LAST, sae, [3])]).sizes
    assert max(codes) == 48 and both[0] == pytest.approx(few.edit_size / 2, rel=1e-4)
    codes.clear()
    again = like_density(sae, x, mask, [0, 1], generator=torch.Generator().manual_seed(0))
    assert again == drawn and codes == [48] * 4
    here = Ground.of(storybook, MIDDLE, task.selection.first(8))
    close(here.change(edit), changes(edit, here.x, here.mask))
    chosen = choose_features(here, sae, text, 9.0, shortlist=4, most=2)
    assert max(codes) == 48
    monkeypatch.undo()
    assert chosen == choose_features(here, sae, text, 9.0, shortlist=4, most=2)


def test_the_damage_of_text_lies_in_its_interval(elsewhere, components):
    harm = elsewhere.harm([ablate(MIDDLE, components[MIDDLE], list(range(60)))], 0)
    assert holds_its_value(harm.kl) and holds_its_value(harm.rise) and harm.kl.low < harm.kl.high
    assert sum(harm.contexts) / sum(harm.counts) == pytest.approx(harm.kl.value)


def write_gemma(folder: Path) -> Path:
    """A random Gemma 2 of three layers, which has norms after attention and after the MLP."""
    from transformers import AutoModelForCausalLM, Gemma2Config

    from sae_core.storybook.train import build_tokenizer

    tokenizer, generator = build_tokenizer(), torch.Generator().manual_seed(0)
    ends = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "final_logit_softcapping": None}
    model = AutoModelForCausalLM.from_config(Gemma2Config(**ends, **heads, **width))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.25 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_change_of_mlp_out_is_one_of_the_residual_where_norms_follow_it_too(tmp_path):
    """What is read and written is what is added to the residual: once it was what the norm behind the MLP reads."""
    model = load_model(write_gemma(tmp_path), device="cpu")
    tokens = random_tokens(model.n_vocab, 3, 9)
    edit = ablate(MLP, random_topk(32), range(40))
    runs = Runs(model, tokens, torch.ones_like(tokens, dtype=torch.bool))
    with torch.no_grad(), model.hooks(edit):
        expected = model.record(tokens, [Site(2)])[Site(2)]
    close(runs.edited([edit]).final, expected, 1e-4)
    assert (runs.edited([Scaled(edit, 0.0)]).final - expected).abs().max() > 0.05  # control


def test_streams_that_do_not_add_to_the_residual_are_refused(storybook, task):
    with user_error("attn_out.2", "resid_post", "mlp_out"):
        Ground.of(storybook, Site(2, Stream.ATTN_OUT), task.selection)


def test_text_that_is_all_about_the_task_is_refused(storybook, contexts):
    with user_error("everywhere"):
        Elsewhere(storybook, contexts[:1], range(storybook.n_vocab))


# ---- prompts, many at a time -----------------------------------------------------------------------


def test_fewer_prompts_are_the_first(at_middle):
    few = at_middle.first(6)
    change = torch.randn(2, *at_middle.x.shape, generator=torch.Generator().manual_seed(0))
    close(few.scores(change[:, :6]), at_middle.scores(change)[:, :6], 1e-4)
    assert len(few.prompts) == 6 and len(at_middle.prompts) == 32


def test_prompts_are_read_in_any_order_and_in_parts(at_middle):
    change = torch.randn(at_middle.x.shape, generator=torch.Generator().manual_seed(0))
    which, strengths = torch.tensor([3, 0, 3, 9]), torch.tensor([0.0, 0.5, 2.0])
    whole = at_middle.scores((strengths[:, None, None, None] * change)[:])
    parts = replace(at_middle, at_once=3)
    close(parts.read(which, lambda part: change[which[part]]), at_middle.scores(change[None])[0, which], 1e-4)
    close(parts.scores_at(strengths, change), whole, 1e-4)
    assert at_middle.at_once > 32 and (whole[0] - whole[2]).abs().max() > 0.1


def test_the_gradient_is_that_of_the_scores(at_middle):
    few = at_middle.first(5)
    weights, along = torch.linspace(-1, 1, 5), torch.randn(few.x.shape, generator=torch.Generator().manual_seed(0))
    step = 1e-2 * along
    up, down = (few.scores(sign * step[None])[0] for sign in (1, -1))
    slope = ((up - down) * weights).sum().item() / 2e-2
    assert (few.gradient(weights) * along).sum().item() == pytest.approx(slope, rel=0.02)


# ---- strength, budget and erasure ------------------------------------------------------------------


def test_the_budget_is_kept_on_the_text_for_choosing(at_middle, elsewhere, components):
    """Control: with a large budget more is done, and it costs more than the small one allows."""
    dictionary, costs = components[MIDDLE], {}
    for budget in (0.01, 10.0):
        chosen = choose_features(at_middle, dictionary, elsewhere, budget, shortlist=16, most=8)
        edit = ablate(MIDDLE, dictionary, chosen)
        assert chosen and elsewhere.kl([edit]) <= budget * 1.0001
        strength, costs[budget] = meeting_strength(at_middle, edit, elsewhere, budget)
        assert costs[budget] == pytest.approx(elsewhere.kl([Scaled(edit, strength)])) and costs[budget] <= budget
    assert costs[10.0] > 0.01


def test_each_step_of_the_search_is_the_best_of_a_plain_loop(at_middle, elsewhere, components):
    """Every candidate ablated on every prompt, in full; prompts on which one is silent make no difference."""
    few, sae = at_middle.first(16), random_topk(128)
    chosen = choose_features(few, sae, elsewhere, 10.0, shortlist=48, most=3)

    def apart(features: list[int]) -> float:
        scores = few.scores(few.change(ablate(MIDDLE, sae, features))[None])
        return candidates._separation(scores, few.prompts).item()

    for step in range(len(chosen)):
        trials = {j: apart([*chosen[:step], j]) for j in range(48) if j not in chosen[:step]}
        assert trials[chosen[step]] == pytest.approx(min(trials.values()), abs=1e-4)
    assert len(chosen) >= 1


def test_the_strength_is_the_best_of_the_grid(storybook, task, at_middle, elsewhere):
    """Against all strengths of the grid run one by one; a strength that was never run is never returned."""
    for edit in fit_at(storybook, [MIDDLE], task.tuning)[MIDDLE].values():
        strength, _ = meeting_strength(at_middle, edit, elsewhere, 1e9)
        everything = at_middle.prompts.told_apart(at_middle.scores_at(torch.tensor(GRID), at_middle.change(edit)))
        assert strength in GRID and everything[GRID.index(strength)] <= everything.min() + 0.02
        assert everything.max() > everything.min() + 0.1  # control


def test_a_strength_that_is_too_dear_is_lowered(elsewhere, components):
    edit = ablate(MIDDLE, components[MIDDLE], list(range(20)))
    whole = elsewhere.kl([edit])
    assert affordable_strength([edit], 1.0, elsewhere, 100.0) == (1.0, pytest.approx(whole))
    budget = whole / 3
    strength, damage = affordable_strength([edit], 1.0, elsewhere, budget)
    assert damage == pytest.approx(elsewhere.kl([Scaled(edit, strength)]), rel=1e-4)
    assert 0 < strength < 1 and damage <= budget < elsewhere.kl([Scaled(edit, strength + 0.011)])


@pytest.mark.parametrize(
    "cost",
    [lambda s: s, lambda s: s**3, lambda s: s**0.3, lambda s: float(s > 0.37)],
    ids=("linear", "cubic", "root", "step"),
)
def test_the_highest_share_that_is_affordable_is_found_with_few_questions(cost):
    for most in (0.01, 0.2, 0.7, 0.999, 1.0):
        asked = []
        share, found = highest(lambda s, asked=asked: asked.append(s) or cost(s), most)
        assert found == cost(share) <= most and (share == 1.0 or cost(share + 0.0101) > most)
        assert len(asked) <= 40


def test_a_probe_finds_what_is_there_and_nothing_that_is_not():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2 == 0
    x = torch.randn(400, 12, generator=g)
    x[:, 3] += 3 * torch.cat([labels, labels])
    assert auroc(probe(x[:200], labels, x[200:]), labels) > 0.95
    x[:, 3] = torch.randn(400, generator=g)
    assert abs(auroc(probe(x[:200], labels, x[200:]), labels) - 0.5) < 0.12


def test_a_probe_is_not_fitted_where_the_eraser_was(storybook, task, elsewhere):
    """An eraser fitted on six names of each class leaves other names as readable as they were.

    Once, the probe was fitted on the eraser's own prompts, on which the classes have equal means, and found nothing.
    """
    everyone = capability_of("pronouns", storybook, n_selection=32, n_test=128, seed=0).test
    judge = Judge(storybook, everyone, elsewhere, seed=0, halves=everyone.halves())
    few = task.fitting.rows(torch.isin(task.fitting.name, task.fitting.name.unique()[:12]))
    for method, eraser in fit_at(storybook, [MIDDLE], few)[MIDDLE].items():
        found = judge.judge([eraser], method)[0]
        assert found.probe.value > 0.8 and found.probe.low > 0.6
        own = at_end(Ground.of(storybook, MIDDLE, few).x, few.end)[:, None]
        scores = probe(eraser(own)[:, 0], few.positive, eraser(own)[:, 0])
        assert auroc(scores, few.positive) < 0.8  # control: the same kind of probe, on the eraser's own prompts


def test_a_probe_reads_the_last_of_the_edited_sites(storybook, judge, components, monkeypatch):
    """Once it read the one before, where the last block was edited too."""
    seen = []
    monkeypatch.setattr(judge, "_probe", lambda ends: (seen.append(ends), Estimate(0.5))[1])
    edits = [
        clamp(site, Basis(torch.eye(128)[:1], torch.zeros(128)), [0], 100.0 + site.layer) for site in (MIDDLE, LAST)
    ]
    judge.judge(edits, Method.FEATURES)
    assert len(seen) == 1 and (seen[0][:, 0] == 105).all()
    seen.clear()
    judge.judge(edits[:1], Method.FEATURES)
    assert sorted(bool((ends[:, 0] == 103).all()) for ends in seen) == [False, True]


def test_erasers_at_every_layer_are_each_fitted_on_the_run_below(storybook, task):
    """A slow reference: hooks on, recorded anew for each layer."""
    prompts, sites = task.fitting.first(64), [Site(1), Site(2), Site(4)]
    mask, slow = up_to_end(storybook, prompts), []
    for site in sites:
        with torch.no_grad(), storybook.hooks(*(replace(one, mask=mask) for one in slow)):
            x = storybook.record(prompts.tokens, [site])[site]
        slow.append(ERASERS[Method.MEANS](site, at_end(x, prompts.end), prompts.positive))
    fast = fit_everywhere(storybook, sites, prompts, ERASERS[Method.MEANS])
    for a, b in zip(fast, slow, strict=True):
        assert a.site == b.site
        close((a.left @ a.right), (b.left @ b.right), 1e-3)
    alone = fit_at(storybook, [Site(4)], prompts)[Site(4)][Method.MEANS]  # control
    assert (alone.left @ alone.right - slow[2].left @ slow[2].right).abs().max() > 1e-2


def test_leace_erases_the_class_from_the_last_tokens_it_was_fitted_on(storybook, task):
    from sklearn.linear_model import LogisticRegression

    here, labels = Ground.of(storybook, LAST, task.selection), task.selection.positive.long()
    x = at_end(here.x, here.prompts.end)

    def accuracy(x: torch.Tensor) -> float:
        fitted = LogisticRegression(max_iter=1000).fit(x.double().numpy(), labels.numpy())
        return fitted.score(x.double().numpy(), labels.numpy())

    erased = fit_leace(LAST, x, labels)(x[:, None])[:, 0]
    gap = erased[labels == 1].mean(0) - erased[labels == 0].mean(0)
    assert gap.norm() < 1e-3 * (x[labels == 1].mean(0) - x[labels == 0].mean(0)).norm()
    assert accuracy(x) == 1 and accuracy(erased) <= 0.55


def test_rivals_at_all_layers_are_as_large_as_asked_in_the_run_that_has_them_all(storybook, elsewhere):
    """Once each was scaled on the unedited run, and all together were larger than the features' edits."""
    edits = [ablate(Site(layer), random_topk(128, seed=layer), range(30)) for layer in (0, 2, 5)]
    sizes = (8.0, 1.3, 2.9)
    found = at_size(edits, sizes, elsewhere.runs)
    assert elsewhere.runs.edited(found).sizes == pytest.approx(sizes, rel=1e-3)
    alone = [at_size([edit], [size], elsewhere.runs)[0] for edit, size in zip(edits, sizes, strict=True)]
    assert elsewhere.runs.edited(alone).sizes != pytest.approx(sizes, rel=0.02)  # control


# ---- several draws, frontier and verdict -----------------------------------------------------------


def removal(method: Method, area: float, damage: float) -> Removal:
    left, cost = Estimate(area, area, area), Estimate(damage)
    return Removal(method, "resid_post.1", left, Estimate(0.5), 1.0, Estimate(0.5), cost, 1.0)


def judged(method: Method, area: float, kl: list[float]) -> tuple[Removal, Harm]:
    mean = sum(kl) / len(kl)
    return removal(method, area, mean), Harm(
        Estimate(mean, mean, mean), Estimate(0.0), 1.0, tuple(kl), (1.0,) * len(kl)
    )


def test_random_draws_on_either_side_of_chance_do_not_make_chance():
    """AUROCs of 0.05 and 0.95 average to 0.5, and were once declared gone; the damage was the first draw's."""
    draws = [judged(Method.RANDOM_FEATURES, area, [kl, 2 * kl]) for area, kl in ((0.05, 1.0), (0.95, 3.0))]
    mean, harm = mean_of(draws)
    assert mean.auroc == Estimate(0.5, 0.05, 0.95) and mean.draws == (0.05, 0.95) and not mean.gone
    assert mean.damage.value == harm.kl.value == 3.0 and harm.contexts == (2.0, 4.0)
    near, _ = mean_of([judged(Method.RANDOM_FEATURES, area, [1.0]) for area in (0.47, 0.53, 0.51)])
    assert near.gone and not mean_of([judged(Method.RANDOM_FEATURES, a, [1.0]) for a in (0.5, 0.5, 0.6)])[0].gone
    assert mean_of(draws[:1])[0].draws == ()


def points(*pairs: tuple[float, float]) -> Frontier:
    whole = tuple(FrontierPoint(0.0, Estimate(a), Estimate(a), Estimate(d)) for a, d in pairs)
    return Frontier(Method.LEACE, "here", whole)


def test_the_damage_at_which_a_capability_goes_is_interpolated():
    assert points((1.0, 0.0), (0.6, 0.1), (0.5, 0.2)).damage_when_gone() == pytest.approx(0.15)
    assert points((1.0, 0.0), (0.0, 1.0)).damage_when_gone() == pytest.approx(0.45)  # it passes through
    assert points((0.0, 0.0), (1.0, 1.0)).damage_when_gone() == pytest.approx(0.45)
    assert points((1.0, 0.0), (0.56, 1.0)).damage_when_gone() is None
    assert points((0.52, 0.0), (0.9, 1.0)).damage_when_gone() == 0.0


def test_a_frontier_asks_only_for_the_strengths_that_are_not_known(judge, components, monkeypatch):
    edit, asked, brief = ablate(MIDDLE, components[MIDDLE], range(9)), [], judge.brief
    whole = Frontier.of(judge, Method.FEATURES, [edit], (0.0, 0.5, 1.0))
    known = {s: judge.judge([Scaled(edit, s)], Method.FEATURES) for s in (0.0, 1.0)}
    monkeypatch.setattr(
        judge, "brief", lambda edits, method: (asked.append(edits[0].strength), brief(edits, method))[1]
    )
    assert Frontier.of(judge, Method.FEATURES, [edit], (0.0, 0.5, 1.0), known) == whole and asked == [0.5]
    assert all(holds_its_value(point.within) for point in whole.points)
    with user_error("at least one strength"):
        Frontier.of(judge, Method.FEATURES, [edit], ())


def test_the_verdict_says_whether_features_beat_leace():
    much, little = [1.0, 1.2, 0.9, 1.1], [0.1, 0.2, 0.1, 0.1]

    def compared(ours: float, features: list[float], leace: list[float]) -> LeaceComparison:
        return LeaceComparison.of(judged(Method.FEATURES, ours, features), judged(Method.LEACE, 0.5, leace), 0)

    yes, no = compared(0.5, little, much), compared(0.5, much, little)
    assert yes.better and yes.clearly and verdict([yes]).startswith("yes")
    assert not no.better and verdict([no]).startswith("no") and verdict([yes, no]).startswith("at some sites")
    short = compared(0.7, little, much)
    assert not short.better and "at 0 of 1 sites, LEACE as fitted at 1" in verdict([short])
    same = compared(0.5, [1.0, 0.0], [0.0, 1.1])
    assert same.better and not same.clearly
    assert "all layers at once features reach" in verdict([yes, replace(yes, site="all layers")])


def test_a_removal_is_gone_within_a_margin_of_chance():
    gone = [area for area in (0.0, 0.44, 0.46, 0.5, 0.54, 0.56) if removal(Method.FEATURES, area, 0.0).gone]
    assert gone == [0.46, 0.5, 0.54]


def test_what_cannot_be_run_is_refused_at_once():
    for wrong in ({"strengths": ()}, {"strengths": (1.0, 0.5)}, {"strengths": (-1.0, 0.5)}, {"text_contexts": 4}):
        with user_error(str(next(iter(wrong)))):
            RemovalConfig(**wrong)
    for wrong in ("selection_prompts", "test_prompts", "greedy_prompts", "shortlist", "max_features", "random_draws"):
        with user_error(wrong, "got 0"):
            RemovalConfig(**{wrong: 0})
    for budget in (0.0, -1.0, float("nan"), float("inf")):
        with user_error("budget", str(budget)):
            RemovalConfig(budget=budget)


def test_the_strength_of_edits_within_edits_multiplies(components):
    edit = ablate(MIDDLE, components[MIDDLE], [1])
    assert unscaled(edit) == (edit, 1.0) and unscaled(Scaled(Scaled(edit, 0.5), 3.0)) == (edit, 1.5)


# ---- from end to end, where everything is known ----------------------------------------------------

YES, NO, N_NAMES, D = 57, 58, 36, 12


class Editable(HandModel):
    """A `HandModel` with hooks."""

    edits: tuple[Intervention, ...] = ()

    @contextmanager
    def hooks(self, *interventions: Intervention) -> Iterator[None]:
        before, self.edits = self.edits, (*self.edits, *interventions)
        try:
            yield
        finally:
            self.edits = before

    def _run(self, h, first, sites):
        kept = {}
        for layer in range(first, self.n_layers):
            h = super()._run(h, layer, [Site(layer)])[Site(layer)]
            for edit in self.edits:
                h = edit(h) if edit.site == Site(layer) else h
            kept[Site(layer)] = h
        return {site: kept[site] for site in sites}


class World:
    """An `Editable` of two layers in which names are of two classes, told apart by the first coordinate alone.

    At the second layer it has been written to the next position. The two answers differ in it alone, so that with
    that coordinate at zero their logits are equal to the bit.
    """

    def __init__(self):
        noise = torch.randn(60, D, generator=torch.Generator().manual_seed(0))
        noise[:, 0] = 0
        embedding = 3 * torch.nn.functional.normalize(noise, dim=-1)
        embedding[0] = 0
        embedding[NO] = embedding[YES]
        female = torch.arange(N_NAMES) % 2 == 0
        embedding[1 : N_NAMES + 1, 0] = torch.where(female, 1.0, -1.0) * torch.linspace(0.5, 1.5, N_NAMES)
        embedding[YES, 0], embedding[NO, 0] = 0.5, -0.5
        zero, on = torch.zeros(D, D), torch.zeros(D, D)
        on[0, 0] = 1.0
        self.model = Editable(embedding, [(zero, on), (zero, zero)])
        self.whole = Basis(torch.eye(D), torch.zeros(D))
        self.without = Basis(torch.eye(D)[1:], torch.zeros(D))
        fillers = torch.arange(N_NAMES + 1, YES)
        words = torch.cat([fillers, torch.arange(1, N_NAMES + 1)])
        generator = torch.Generator().manual_seed(1)
        self.contexts = words[torch.randint(len(words), (12, 16), generator=generator)]
        self.contexts[:, 0] = 0

    def prompts(self, first: int, n_names: int, n_templates: int = 4, *, templates: int = 0) -> Contrast:
        """[BOS, filler, name, filler] for every name with every template, the names in turn."""
        template = torch.arange(n_templates).repeat_interleave(n_names) + templates
        name = torch.arange(n_names).repeat(n_templates) + first
        tokens = torch.stack([0 * name, N_NAMES + 1 + template, name + 1, N_NAMES + 8 + template], 1)
        one = torch.ones_like(name)
        return Contrast(tokens, 3 * one, name % 2 == 0, YES * one, NO * one, template, template, name)

    def capability(self, **fields) -> Capability:
        selection, check, both = self.prompts(0, 8), self.prompts(8, 8), self.prompts(0, 16)
        own = {"tuning": selection, "fitting": both, "test": self.prompts(16, 20, templates=4), "due": (YES, NO)}
        task = Capability("by hand", ("yes", "no"), "a prompt", selection, check, both, **own)
        return replace(task, **({"transfers": {"other": self.prompts(16, 20, templates=6)}} | fields))

    def removed(self, dictionaries: dict, task: Capability | None = None, **fields) -> RemovalResult:
        config = replace(CONFIG, **fields)
        stages: list[Progress] = []
        task = task or self.capability()
        result = remove(self.model, task, dictionaries, self.contexts, config, on_progress=stages.append)
        assert [stage.done for stage in stages] == list(range(len(stages)))
        assert {stage.total for stage in stages} <= {len(stages), len(stages) + 1}  # all layers may turn out to be one
        return result


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def result(world) -> RemovalResult:
    return world.removed({Site(0): world.whole, Site(1): world.whole}, random_draws=3, max_features=4)


def named(result: RemovalResult) -> dict[Method, Removal]:
    return {method.method: method for method in result.methods}


def test_the_search_finds_the_latent_that_alone_carries_the_class(result):
    """And no other, at both layers, and removes the class exactly."""
    features = named(result)[Method.FEATURES]
    assert features.features == (f"{Site.parse(result.site).layer}_0",) and features.strength == 1.0
    assert features.auroc.value == 0.5 and features.gone and features.accuracy.value == pytest.approx(0.5, abs=0.01)
    assert features.transfer["other"].value == features.within.value == 0.5
    elsewhere = {(m.site, m.method): m for m in result.elsewhere}
    other = next(site for site in ("resid_post.0", "resid_post.1") if site != result.site)
    assert elsewhere[other, Method.FEATURES].auroc.value == 0.5
    for m in (*result.methods, *result.elsewhere):
        if m.method in (Method.RANDOM_FEATURES, Method.RANDOM_DIRECTIONS):
            assert not m.gone and m.auroc.value > 0.9


def test_a_dictionary_without_that_latent_cannot_remove_the_class(world):
    """Negative control: the same basis, but for the one direction."""
    with user_error("no feature"):
        world.removed({Site(0): world.without, Site(1): world.without})


def test_without_an_edit_the_class_is_there_and_is_read(result):
    none = result.unedited
    assert none.method == Method.NONE and none.auroc.value == none.transfer["other"].value == 1.0 == result.own_auroc
    assert none.damage.value == 0 == none.edit_size and none.features == ()
    assert none.probe.value > 0.95 and none.probe_last.value > 0.95
    assert named(result)[Method.FEATURES].probe.value < 0.8


def test_the_result_is_consistent(result):
    methods = named(result)
    rivals = {*ERASERS, Method.RANDOM_FEATURES, Method.RANDOM_DIRECTIONS}
    tuned = {Method.LEACE_TUNED, Method.MEANS_TUNED, Method.ORTHOGONAL_TUNED}
    assert {*methods} == {Method.FEATURES, Method.PLAIN} | rivals | tuned and len(methods) == len(result.methods)
    assert {m.site for m in result.methods} == {result.site} and {m.site for m in result.everywhere} == {"all layers"}
    for others in (result.elsewhere, result.everywhere):
        assert [m.method for m in others] == [Method.FEATURES, *ERASERS, *[*methods][-2:]]
    for method in (*result.methods, *result.elsewhere, *result.everywhere):
        assert method.gone == all(abs(area - 0.5) <= GONE for area in method.draws or [method.auroc.value])
        assert method.damage.value > 0 and method.edit_size > 0 and 0 <= method.accuracy.value <= 1
        for name in ("auroc", "within", "accuracy", "gap", "damage", "rise"):
            assert holds_its_value(getattr(method, name)), (method.method, name)
    gone = [m for m in result.methods if m.gone]
    assert gone and result.best == min(gone, key=lambda m: m.damage.value).method
    assert result.site in result.sentence() and "\n" not in result.sentence()
    plain, scaled = methods[Method.PLAIN], methods[Method.FEATURES]
    assert plain.features == scaled.features and plain.edit_size * scaled.strength == pytest.approx(scaled.edit_size)


def test_random_edits_are_of_the_same_size_at_one_site_and_at_all(result):
    for rows in (named(result), {m.method: m for m in result.everywhere}):
        for name in (Method.RANDOM_FEATURES, Method.RANDOM_DIRECTIONS):
            assert rows[name].edit_size == pytest.approx(rows[Method.FEATURES].edit_size, rel=1e-3)
    assert [len(named(result)[m].draws) for m in (Method.RANDOM_FEATURES, Method.RANDOM_DIRECTIONS)] == [3, 3]


def test_a_frontier_begins_at_the_unedited_model(result):
    assert {curve.method for curve in result.frontiers} >= {Method.FEATURES, Method.RANDOM_FEATURES, *ERASERS}
    for curve in result.frontiers:
        assert [p.strength for p in curve.points] == [0.0, 0.5, 1.0]
        assert curve.points[0].damage.value == 0 and curve.points[0].auroc.value == result.own_auroc
        everything = {(m.site, m.method): m for m in (*result.methods, *result.everywhere)}
        if not everything[curve.site, curve.method].draws:
            assert curve.points[2].damage == everything[curve.site, curve.method].damage


def test_the_result_goes_to_json_without_nan(result):
    numbers = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert numbers["sentence"] == result.sentence() and numbers["verdict"] == result.verdict()
    assert "edits" not in numbers and len(result.edits) == 1 and result.edits[0].mask is None
    assert from_plain(RemovalResult, numbers) == result  # which does not compare the edits
    assert {curve["method"] for curve in numbers["frontiers"]} >= {"features", "LEACE", "random directions"}
    assert [c["site"] for c in numbers["comparisons"]] == ["resid_post.0", "resid_post.1", "all layers"]
    assert numbers["resampled"] == "names and templates, crossed" and numbers["methods"][0]["method"] == "features"


def test_text_for_choosing_and_for_reporting_are_two_halves(world, monkeypatch):
    """Once contexts were dealt out in turn, so that a long document lay in both."""
    seen = []

    @dataclass(frozen=True)
    class Spied:
        def __new__(cls, model, tokens, due):
            seen.append(tokens)
            return Elsewhere(model, tokens, due)

    monkeypatch.setattr("editing.removal.experiment.Elsewhere", Spied)
    world.removed({Site(0): world.whole}, text_contexts=10)
    assert torch.equal(seen[0], world.contexts[:5]) and torch.equal(seen[1], world.contexts[5:10])


def test_too_little_text_is_refused(world):
    with user_error("at least 8 held-out contexts", "there are 7"):
        remove(world.model, world.capability(), {Site(0): world.whole}, world.contexts[:7], CONFIG)


def test_classes_that_are_no_concept_are_neither_erased_nor_read(world):
    """Their erasers would do next to nothing, and features beside them would win whatever they do."""
    task = world.capability(concept=False, notes=("the classes are no concept",))
    result = world.removed({Site(0): world.whole, Site(1): world.whole}, task)
    assert {*named(result)} == {Method.FEATURES, Method.PLAIN, Method.RANDOM_FEATURES, Method.RANDOM_DIRECTIONS}
    assert result.comparisons == () and "not compared" in result.verdict() and "no concept" in result.notes[0]
    assert all(m.probe is None and m.probe_last is None for m in (*result.methods, *result.everywhere))
    assert named(result)[Method.FEATURES].gone and not {*ERASERS} & {m.method for m in result.everywhere}
    json.dumps(result.to_json(), allow_nan=False)


def test_a_site_without_features_for_it_is_passed_over(world):
    """Once, one such site ended the experiment at all of them."""
    result = world.removed({Site(0): world.whole, Site(1): Zero(D)})
    assert result.site == "resid_post.0" and result.elsewhere == () and result.everywhere == ()
    with user_error("no feature"):
        world.removed({Site(0): Zero(D)})


def test_a_dictionary_of_few_latents_has_random_features_too(world):
    """Once, fewer than ten latents could not be drawn from; with none left that is said in one line."""
    few, one = (Basis(world.whole.directions[:n], world.whole.mean) for n in (6, 1))
    assert named(world.removed({Site(0): few}))[Method.RANDOM_FEATURES].auroc.value > 0.9
    with user_error("few latents"):
        world.removed({Site(0): one})


def test_sites_that_cannot_be_edited_or_are_not_there_are_refused(world):
    with user_error("resid_post", "attn_out.1"):
        world.removed({Site(1, Stream.ATTN_OUT): world.whole})
    with user_error("resid_post.4", "resid_post.0"):
        remove(world.model, world.capability(), {Site(0): world.whole}, world.contexts, CONFIG, site=Site(4))


def test_a_budget_that_allows_nothing_is_said(world):
    with user_error("budget", "by hand"):
        world.removed({Site(0): world.whole}, budget=1e-12)


# ---- from end to end, on storybook -----------------------------------------------------------------


def test_a_direction_that_carries_most_of_pronouns_is_found_and_ablated(storybook, task, contexts, monkeypatch):
    """The difference of the class means at the ends of prompts, on names that are not the test's."""
    x = at_end(storybook.record(task.fitting.tokens, [LAST])[LAST], task.fitting.end).double()
    ahead, behind = (x[task.fitting.positive == one].mean(0) for one in (True, False))
    rest = torch.randn(127, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([(ahead - behind)[None], rest]).T).Q.T.float().contiguous()
    planted = {LAST: Basis(basis, (ahead + behind).float() / 2), MIDDLE: Zero(128)}
    monkeypatch.setattr("editing.removal.experiment.capability_of", lambda *_, **__: task)
    result = remove_pronouns(storybook, planted, contexts, CONFIG)
    assert result.own_auroc >= 0.99 and result.own.n == CONFIG.test_prompts == 48 and result.everywhere == ()
    features = named(result)[Method.FEATURES]
    assert features.features[0] == "5_0" and abs(features.auroc.value - 0.5) < 0.3
    assert {*features.transfer} == {*task.transfers} and result.notes == task.notes
    assert named(result)[Method.RANDOM_FEATURES].auroc.value > 0.95


def test_pairs_of_many_answers_are_no_concept_and_can_be_removed(storybook, components, contexts, monkeypatch):
    monkeypatch.setattr(capability, "EVERYTHING", 48)
    task = capability_of("brackets", storybook, n_selection=24, n_test=32, seed=0)
    assert not task.concept and "pairs of answers" in task.notes[-1]
    result = remove(storybook, task, {MIDDLE: components[MIDDLE]}, contexts, CONFIG)
    assert result.task == "brackets" and result.own_auroc > 0.9 and Method.LEACE not in named(result)
    assert result.resampled == "templates, then prompts" and NO_CONCEPT[-40:] in result.notes[-1]


def test_too_few_pairs_are_refused(storybook):
    tokens = torch.ones(2, 3, dtype=torch.long)
    one = torch.tensor([1, 1])
    pairs = PromptPairs("mine", tokens, tokens, one, one + 1, one + 1, one)
    with user_error("mine", "too few"):
        of_pairs(storybook, "mine", pairs, pairs, n_selection=8)


# ---- whose classes are a concept -------------------------------------------------------------------

PLACES = ("store", "park", "garden", "school", "market", "library")


def write_pairs(path: Path, labels: tuple[str | None, str | None], *, answers: int = 2) -> Path:
    """Two names before one pronoun or the other; every second pair about what they take."""
    lines = []
    for i, place in enumerate(PLACES * 2):
        turned = (i // 2) % 2 == 1
        she, he = ("Anna", "John") if i % 2 else ("Mary", "Tom")
        clean, corrupted = (f"{name} lived in London. {name} went to the {place}," for name in (she, he))
        right, wrong = ("she", "he") if i % 2 or answers == 1 else ("her", "his")
        line = [clean, corrupted, right, wrong] if not turned else [corrupted, clean, wrong, right]
        own = dict(zip(("clean", "corrupted", "answer", "foil"), line, strict=True)) | {"template": place}
        label = labels[int(turned)]
        lines.append(own if label is None else own | {"label": label})
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_one_pair_of_answers_is_a_concept_and_several_need_labels(storybook, tmp_path):
    size = {"n_selection": 8, "n_test": 8, "seed": 0}
    one = capability_of(write_pairs(tmp_path / "one.jsonl", (None, None), answers=1), storybook, **size)
    assert one.concept and len(one.notes) == 1
    several = capability_of(write_pairs(tmp_path / "several.jsonl", (None, None)), storybook, **size)
    assert not several.concept and "2 pairs of answers" in several.notes[1]
    told = capability_of(write_pairs(tmp_path / "told.jsonl", ("female", "male")), storybook, **size)
    female = {*storybook.to_ids(" she her")}
    for prompts in (told.test, told.fitting, told.check, told.choosing):
        assert {*prompts.yes.tolist()} <= female and not {*prompts.no.tolist()} & female
        names = [storybook.token_text(int(row[1])).strip() for row in prompts.tokens]
        assert [name in ("Anna", "Mary") for name in names] == prompts.positive.tolist()
    assert told.concept and told.answers[0] in ("she", "her")


def test_labels_that_do_not_fit_are_refused(storybook, tmp_path):
    size = {"n_selection": 8, "n_test": 8, "seed": 0}
    for labels in (("female", None), ("female", "female")):
        with user_error("label", "two different ones"):
            capability_of(write_pairs(tmp_path / "pairs.jsonl", labels), storybook, **size)
    path = write_pairs(tmp_path / "pairs.jsonl", ("a", "b"))
    first, *rest = path.read_text().split("\n")
    path.write_text("\n".join([first, first.replace('"a"', '"b"').replace("Tom", "Paul"), *rest]))
    with user_error("one class"):
        capability_of(path, storybook, **size)
