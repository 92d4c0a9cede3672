"""The IOI experiment from end to end: what is compared with what, on which prompts, and what is said of it."""

import json
import math
from dataclasses import replace

import pytest
import torch
from handmade import random_topk
from tiny import user_error

from editing.figures import ioi_figure, selection_figure
from editing.ioi import BASELINES, IOIConfig, IOIResult, compare, run_ioi
from editing.metrics import resampled
from editing.selection import SELECTORS, SelectionConfig, greedy
from editing.tasks.ioi import Corruption, IOITask
from editing.tradeoff import PatchExperiment, Trace, default_counts
from sae_core.activations import harvest
from sae_core.dictionaries import pca
from sae_core.sites import Site, Stream
from sae_core.text import Text

SEARCH = SelectionConfig(n_greedy=3, shortlist=6, n_thresholds=3)
CONFIG = IOIConfig(6, 8, SEARCH, selectors=("greedy", "random"), baselines=("pca",), random_draws=2)


@pytest.fixture(scope="module")
def few_contexts(storybook):
    return Text("storybook", 48, True, 10 * 48).contexts(storybook)


@pytest.fixture(scope="module")
def dictionaries(storybook, few_contexts):
    x = harvest(storybook, few_contexts, (Site(1),))[Site(1)]
    return {Site(1): pca(x), Site(3): random_topk(128, 96, 8), Site(2, Stream.ATTN_OUT): random_topk(128)}


def run(storybook, contexts, dictionaries, corruption=Corruption.IO, config=CONFIG, **where):
    *lines, result = run_ioi(storybook, dictionaries, contexts, corruption, config, **where)
    assert all(isinstance(line, str) for line in lines) and isinstance(result, IOIResult)
    return result


@pytest.mark.parametrize("corruption", Corruption)
def test_every_corruption_begins_with_the_models_own_score(storybook, few_contexts, dictionaries, corruption):
    config = replace(CONFIG, selectors=("attribution",), baselines=())
    result = run(storybook, few_contexts, dictionaries, corruption, config, site=Site(3))
    assert result.own.accuracy >= 0.99 and result.own.n == result.n_test == 8 and result.n_selection == 6
    assert result.corruption is corruption and result.comparisons == () and result.sentences() == []


def test_the_experiment_on_storybook(storybook, few_contexts, dictionaries):
    config = replace(CONFIG, selectors=tuple(SELECTORS), baselines=IOIConfig().baselines)
    result = run(storybook, few_contexts, dictionaries, config=config)
    names = [(c.name, c.selection) for c in result.curves]
    assert names == [("dictionary", how) for how in SELECTORS] + [(BASELINES[b], "greedy") for b in config.baselines]
    assert set(result.site_kl) == {"resid_post.1", "resid_post.3"}  # the usual streams
    assert result.site == min(result.site_kl, key=result.site_kl.get)
    for own in result.curves:
        assert own.points[0].kl == pytest.approx(result.floor["nothing"], rel=1e-3)
        assert own.points[0].recovered == pytest.approx(0, abs=1e-6)
        sizes = [p.n_features for p in own.points]
        assert sizes == (default_counts(sizes[-1]) if own.selection != "threshold" else sorted(set(sizes)))
        for p in own.points:
            for name, (low, high) in p.intervals.items():
                assert low <= getattr(p, name) + 1e-6 and getattr(p, name) <= high + 1e-6
    for complete in result.curves[len(SELECTORS) :]:
        assert complete.points[-1].n_features == (256 if complete.name == "non-negative PCA" else 128)
        assert complete.points[-1].kl == pytest.approx(0, abs=1e-3)
        assert complete.points[-1].recovered == pytest.approx(1, abs=1e-2)
    for same in result.curves[: len(SELECTORS)]:
        assert same.points[-1].kl == pytest.approx(result.floor["all_latents"], rel=1e-2, abs=1e-4)
    assert result.floor["all_latents_and_error"] == pytest.approx(0, abs=1e-3)
    json.dumps(result.to_json(), allow_nan=False)


def test_several_sets_are_compared_on_the_same_prompts(storybook, few_contexts):
    sets = {"small": {Site(3): random_topk(128, 32, 4)}, "large": {Site(3): random_topk(128, 96, 8)}}
    result = run(storybook, few_contexts, sets, config=replace(CONFIG, baselines=("pca", "random_basis")))
    assert [c.name for c in result.main()] == ["small", "large", "PCA", "random basis"]
    assert result.floors.keys() == sets.keys() and len(result.sentences()) == 2
    pairs = [(c.dictionary, c.baseline) for c in result.comparisons]
    assert pairs == [(name, other) for name in sets for other in ("PCA", "random basis")]
    points = {c.name: {p.n_features: p.kl for p in c.points} for c in result.main()}
    for one in result.comparisons:
        for count, difference, (low, high) in zip(one.counts, one.difference, one.interval, strict=True):
            assert difference == pytest.approx(points[one.dictionary][count] - points[one.baseline][count], abs=1e-6)
            assert low - 1e-6 <= difference <= high + 1e-6
        assert one.edit_sizes == tuple(sorted(one.edit_sizes))
    names = {own.name for own in ioi_figure(result).data} | {own.name for own in selection_figure(result).data}
    assert {"small", "large", "PCA"} <= names


def test_hover_names_the_features_that_came_with_a_point(storybook, few_contexts, dictionaries):
    result = run(storybook, few_contexts, dictionaries, site=Site(3))
    first = result.curves[0].order[0]
    assert first.startswith("3_")
    lines = [
        own
        for own in ioi_figure(result, {first: "<b>"}).data
        if own.name == "dictionary" and own.customdata is not None
    ]
    assert lines[0].customdata[1][2] == f"<br>+ {first} (&lt;b&gt;)" and lines[0].customdata[0][2] == ""
    assert result.curves[-1].order[0].startswith("PCA ")


def test_the_site_can_be_given_and_the_seed_decides(storybook, few_contexts, dictionaries):
    result = run(storybook, few_contexts, dictionaries, site=Site(3))
    assert result.site == "resid_post.3" and list(result.site_kl) == ["resid_post.3"]
    assert result.curves[0].points[-1].n_features == 96
    assert run(storybook, few_contexts, dictionaries, site=Site(3)) == result


def test_attention_and_chosen_positions(storybook, few_contexts, dictionaries):
    site = Site(2, Stream.ATTN_OUT)
    everywhere = run(storybook, few_contexts, dictionaries, site=site)
    end = run(storybook, few_contexts, dictionaries, site=site, positions=(-1,))
    assert end.positions == (-1,) and everywhere.positions is None
    assert end.floor["all_latents_and_error"] != pytest.approx(everywhere.floor["all_latents_and_error"], rel=1e-3)


def test_features_are_chosen_without_the_test_prompts(storybook, few_contexts, dictionaries):
    """Their order is that on the selection prompts, whatever the number of test prompts."""
    pairs = IOITask.of(storybook).pairs(storybook, Corruption.IO, "selection", 6, seed=0)
    order = greedy(PatchExperiment(storybook, pairs, Site(3)), dictionaries[Site(3)], SEARCH, seed=0).order
    result = run(storybook, few_contexts, dictionaries, site=Site(3))
    assert result.curves[0].order == tuple(f"3_{j}" for j in order)


# ---- comparisons -----------------------------------------------------------------------------------


def made(kl: list[float], sizes: list[float], n: int = 40, noise: float = 0.0) -> Trace:
    chance = torch.randn(len(kl), n, generator=torch.Generator().manual_seed(0)).double()
    readout = torch.zeros(len(kl), n, 3).double()
    readout[..., 0] = torch.tensor(kl).double()[:, None] + noise * chance[:1]
    return Trace(tuple(range(len(kl))), readout, torch.tensor(sizes).double()[:, None].expand(-1, n))


def test_where_a_dictionary_is_better_and_where_the_curves_cross():
    ours, theirs = made([4, 2, 1, 1], [0, 1, 2, 3], noise=5), made([4, 3, 1.5, 0], [0, 2, 4, 6], noise=5)
    found = compare("d", "PCA", ours, theirs, resampled(range(40), 0), [0.5, 1.0, 4.0, 6.0])
    assert found.difference == pytest.approx((0, -1, -0.5, 1))
    assert found.better == [1, 2] and found.worse == [3] and found.crossing == 3
    # at size 1 one feature against none, at 4 all three against two, at 6 all three of each
    assert found.size_difference == pytest.approx((0, 2 - 4, 1 - 1.5, 1 - 0))
    assert found.better_sizes == [1, 4] and found.worse_sizes == [6]


def test_a_baseline_that_never_gets_ahead_has_no_crossing():
    found = compare("d", "PCA", made([4, 2, 1], [0, 1, 2]), made([4, 3, 2], [0, 1, 2]), resampled(range(40), 0), [1.0])
    assert found.crossing is None and found.worse == []


def test_pairs_that_differ_by_chance_alone_are_not_called_better():
    ours, theirs = made([1.0], [0]), made([1.0], [0])
    ours.readout[..., 0] += 0.1 * torch.randn(40, generator=torch.Generator().manual_seed(4)).double()
    found = compare("d", "PCA", ours, theirs, resampled(range(40), 0), [1.0])
    assert found.better == found.worse == []


def test_numbers_without_a_value_are_null(storybook, few_contexts, dictionaries):
    result = run(storybook, few_contexts, dictionaries, site=Site(3))
    broken = replace(result.curves[0].points[0], recovered=math.nan)
    result = replace(result, curves=(replace(result.curves[0], points=(broken,)), *result.curves[1:]))
    assert result.to_json()["curves"][0]["points"][0]["recovered"] is None


# ---- bad input -------------------------------------------------------------------------------------


def test_what_is_not_there_is_refused(storybook, few_contexts, dictionaries):
    with user_error("resid_post.5", "resid_post.1"):
        run(storybook, few_contexts, dictionaries, site=Site(5))
    with user_error("at least one set"):
        run(storybook, few_contexts, {})
    apart = {"a": {Site(1): dictionaries[Site(1)]}, "b": {Site(3): dictionaries[Site(3)]}}
    with user_error("no site in common"):
        run(storybook, few_contexts, apart)
    with user_error("resid_post.1", "b has resid_post.3"):
        run(storybook, few_contexts, apart, site=Site(1))
    with user_error("no selector 'best'", "greedy"):
        replace(CONFIG, selectors=("best",))
    with user_error("no baseline 'nmf'", "pca"):
        replace(CONFIG, baselines=("nmf",))
    with user_error("prompt"):
        run(storybook, few_contexts, dictionaries, config=replace(CONFIG, test_prompts=0))
