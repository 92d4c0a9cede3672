"""The IOI experiment from end to end: what is compared with what, on which prompts, and what is said of it."""

import json
from dataclasses import replace

import pytest
from handmade import random_topk
from planted import unchecked
from tiny import user_error

from editing.ioi.baselines import BASELINE_NAMES
from editing.ioi.config import IOIConfig
from editing.ioi.curve import curve_counts
from editing.ioi.feature_selection import PER_PAIR, SELECTORS, SelectionConfig, greedy
from editing.ioi.figure import ioi_figure, selection_figure
from editing.ioi.result import IOIResult
from editing.ioi.site_experiment import PatchExperiment
from editing.ioi.study import IOIStudy
from editing.tasks.ioi import Corruption, IOITask, Role
from editing.tasks.score import task_score
from sae_core.codec import from_plain, to_plain
from sae_core.data.activations import harvest
from sae_core.data.text import Text
from sae_core.dictionaries.baselines import pca
from sae_core.progress import Progress
from sae_core.sites import Site, Stream
from sae_core.storage import load_set

SEARCH = SelectionConfig(n_greedy=3, shortlist=6, n_thresholds=2)
CONFIG = IOIConfig(6, 8, SEARCH, selectors=("greedy", "random"), baselines=("pca",), random_draws=2)


@pytest.fixture(scope="module")
def few_contexts(storybook):
    return Text("storybook", 48, True, 10 * 48).contexts(storybook)


@pytest.fixture(scope="module")
def dictionaries(storybook, few_contexts):
    x = harvest(storybook, few_contexts, (Site(1),))[Site(1)]
    return {Site(1): pca(x), Site(3): random_topk(128, 96, 8), Site(2, Stream.ATTN_OUT): random_topk(128)}


def run_sets(storybook, contexts, sets, corruption=Corruption.IO, config=CONFIG, **where) -> IOIResult:
    with unchecked():  # what takes its time has its types checked in the tests of its parts, and below
        return IOIStudy(storybook, sets, contexts, config).run(corruption, **where)


def run(storybook, contexts, dictionaries, corruption=Corruption.IO, config=CONFIG, **where) -> IOIResult:
    return run_sets(storybook, contexts, {"dictionary": dictionaries}, corruption, config, **where)


@pytest.mark.slow
@pytest.mark.parametrize("corruption", Corruption)
def test_every_corruption_begins_with_the_models_own_score(storybook, few_contexts, dictionaries, corruption):
    config = replace(CONFIG, selectors=("attribution",), baselines=())
    study = IOIStudy(storybook, {"dictionary": dictionaries}, few_contexts, config)
    result = study.run(corruption, site=Site(3))
    assert result.own.accuracy.value >= 0.99 and result.own.n == result.n_test == 8 and result.n_selection == 6
    assert result.corruption is corruption and result.comparisons == result.comparisons_of_pairs == ()
    general, specific = result.sentences()
    assert general.startswith("chosen on other prompts: with 16 features dictionary leaves") and "beats" not in general
    assert specific.startswith("chosen for each pair")


@pytest.mark.slow
def test_the_experiment_on_storybook(storybook, few_contexts, dictionaries):
    config = replace(CONFIG, selectors=tuple(SELECTORS), baselines=IOIConfig().baselines)
    stages: list[Progress] = []
    result = run(storybook, few_contexts, dictionaries, config=config, on_progress=stages.append)
    assert [(stage.done, stage.total) for stage in stages] == [(done, len(stages)) for done in range(len(stages))]
    names = [(c.name, c.selection) for c in result.curves]
    methods = ["dictionary", *(BASELINE_NAMES[b] for b in config.baselines)]
    general = [("dictionary", how) for how in SELECTORS] + [(name, "attribution") for name in methods[1:]]
    assert names == general + [(name, PER_PAIR) for name in methods]
    assert set(result.site_kl) == {"resid_post.1", "resid_post.3"}  # the usual streams
    assert result.site == min(result.site_kl, key=result.site_kl.get)
    for curve in result.curves:
        assert curve.points[0].kl.value == pytest.approx(result.floors["dictionary"]["nothing"], rel=1e-3)
        assert curve.points[0].recovered.value == pytest.approx(0, abs=1e-6)
        sizes = [p.n_features for p in curve.points]
        assert sizes == (curve_counts(sizes[-1]) if curve.selection != "threshold" else sorted(set(sizes)))
        for p in curve.points:
            for number in (p.kl, p.recovered, p.edit_size, p.probability):
                assert number.low - 1e-6 <= number.value <= number.high + 1e-6
    for complete in result.curves[len(SELECTORS) :]:
        if complete.name == "dictionary":
            continue
        assert complete.points[-1].n_features == (256 if complete.name == "non-negative PCA" else 128)
        assert complete.points[-1].kl.value == pytest.approx(0, abs=1e-3)
        assert complete.points[-1].recovered.value == pytest.approx(1, abs=1e-2)
    for same in result.curves[: len(SELECTORS)]:
        assert same.points[-1].kl.value == pytest.approx(result.floors["dictionary"]["all_latents"], rel=1e-2, abs=1e-4)
    assert result.floors["dictionary"]["all_latents_and_error"] == pytest.approx(0, abs=1e-3)
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert from_plain(IOIResult, plain) == result


@pytest.mark.slow
def test_several_sets_are_compared_on_the_same_prompts(storybook, few_contexts):
    sets = {"small": {Site(3): random_topk(128, 32, 4)}, "large": {Site(3): random_topk(128, 96, 8)}}
    result = run_sets(storybook, few_contexts, sets, config=replace(CONFIG, baselines=("pca", "random_basis")))
    assert [c.name for c in result.main()] == ["small", "large", "PCA", "random basis"]
    assert result.floors.keys() == sets.keys() and len(result.sentences()) == 4 and len(result.reasons()) == 2
    pairs = [(c.dictionary, c.baseline) for c in result.comparisons]
    assert pairs == [(name, other) for name in sets for other in ("PCA", "random basis")]
    points = {c.name: {p.n_features: p.kl.value for p in c.points} for c in result.main()}
    for pair in result.comparisons:
        for count, difference in zip(pair.counts, pair.difference, strict=True):
            expected = points[pair.dictionary][count] - points[pair.baseline][count]
            assert difference.value == pytest.approx(expected, abs=1e-6)
            assert difference.low - 1e-6 <= difference.value <= difference.high + 1e-6
        assert pair.edit_sizes == tuple(sorted(pair.edit_sizes))
    names = {line.name for line in (*ioi_figure(result).data, *selection_figure(result).data)}
    assert {"small", "large", "PCA"} <= names


def test_a_trained_dictionary_leaves_less_than_random_directions(storybook, trained_set):
    """At few features, where it matters. Being ahead of PCA, as the source found, takes longer training than this."""
    saes = load_set(trained_set)
    config = IOIConfig(12, 24, SelectionConfig(8, 16), selectors=("greedy",), baselines=())
    left = []
    for dictionary in (saes.dictionaries[Site(3)], random_topk(128, 512, 16)):
        sets, contexts = {Site(3): dictionary}, saes.text.contexts(storybook)[:50]
        result = run(storybook, contexts, sets, Corruption.SWAP, config, site=Site(3))
        points = next(curve for curve in result.curves if curve.name == "dictionary").points
        left.append([point.kl.value for point in points if 4 <= point.n_features <= 12])
    trained, random = left
    assert len(trained) == 9 and sum(trained) < sum(random) - 9 * 0.2


@pytest.mark.slow
def test_the_site_can_be_given_and_the_seed_decides(storybook, few_contexts, dictionaries):
    result = run(storybook, few_contexts, dictionaries, site=Site(3))
    assert result.site == "resid_post.3" and list(result.site_kl) == ["resid_post.3"]
    assert result.curves[0].points[-1].n_features == 96
    assert run(storybook, few_contexts, dictionaries, site=Site(3)) == result


@pytest.mark.slow
def test_attention_and_chosen_positions(storybook, few_contexts, dictionaries):
    site = Site(2, Stream.ATTN_OUT)
    everywhere, end, role = (
        run(storybook, few_contexts, dictionaries, site=site, positions=where) for where in (None, (-1,), (Role.END,))
    )
    assert end.positions == (-1,) and everywhere.positions is None and role.positions == ("END",)
    left, right = (result.floors["dictionary"]["all_latents_and_error"] for result in (everywhere, end))
    assert left != pytest.approx(right, rel=1e-3)
    assert role.curves == end.curves
    for result in (end, role):
        assert from_plain(IOIResult, to_plain(result)) == result


@pytest.mark.slow
def test_sites_patched_jointly(storybook, few_contexts):
    """Features of both are ranked together; everything patched at the upper one is the clean run there."""
    sites = (Site(1), Site(3))
    sets = {site: random_topk(128, 32, 4, seed=site.layer) for site in sites}
    config = replace(CONFIG, selectors=("greedy", "attribution"))
    joint = run(storybook, few_contexts, sets, config=config, site=sites)
    assert joint.site == "resid_post.1 + resid_post.3" and list(joint.site_kl) == [joint.site]
    sparse, _, complete, *_ = joint.curves
    assert sparse.points[-1].n_features == 64 and complete.points[-1].n_features == 256
    assert {name.split("_")[0] for name in sparse.order} == {"1", "3"}
    assert {name.rsplit("_")[0] for name in complete.order} == {"PCA 1", "PCA 3"}
    assert complete.points[-1].kl.value == pytest.approx(0, abs=1e-3) and complete.points[0].kl.value > 1
    assert joint.floors["dictionary"]["all_latents_and_error"] == pytest.approx(0, abs=1e-3)
    # control: with only the lower one patched, what it does not carry stays
    alone = run(storybook, few_contexts, sets, config=config, site=sites[0], positions=(Role.S2,))
    assert alone.floors["dictionary"]["all_latents_and_error"] > 0.1


@pytest.mark.slow
def test_a_study_reads_text_and_model_once_for_all_its_experiments(storybook, few_contexts, dictionaries, monkeypatch):
    harvested, scored = [], []
    monkeypatch.setattr("editing.ioi.baselines.harvest", lambda *args: harvested.append(args[2]) or harvest(*args))
    monkeypatch.setattr("editing.ioi.study.task_score", lambda *args: scored.append(args) or task_score(*args))
    study = IOIStudy(storybook, {"dictionary": dictionaries}, few_contexts, replace(CONFIG, selectors=("attribution",)))
    study.baselines.at([Site(1), Site(3)])
    kinds, sites = (Corruption.IO, Corruption.SWAP), (Site(1), Site(3))
    results = [study.run(kind, site=site) for kind in kinds for site in sites]
    assert harvested == [(Site(1), Site(3))] and len(scored) == 2
    assert [(result.corruption, result.site) for result in results] == [
        (kind, str(site)) for kind in kinds for site in sites
    ]
    assert results[-1] == run(storybook, few_contexts, dictionaries, Corruption.SWAP, study.config, site=Site(3))


@pytest.mark.slow
def test_features_are_chosen_without_the_test_prompts(storybook, few_contexts, dictionaries):
    """Their order is that on the selection prompts, whatever the number of test prompts."""
    pairs = IOITask.of(storybook).pairs(storybook, Corruption.IO, "selection", 6, seed=0)
    experiment = PatchExperiment(storybook, pairs, Site(3))
    order = greedy(experiment.patching(dictionaries[Site(3)]), SEARCH, seed=0).order
    result = run(storybook, few_contexts, dictionaries, site=Site(3))
    assert result.curves[0].order == tuple(f"3_{j}" for j in order)


# ---- bad input -------------------------------------------------------------------------------------


def test_what_is_not_there_is_refused(storybook, few_contexts, dictionaries):
    with user_error("resid_post.5", "resid_post.1"):
        run(storybook, few_contexts, dictionaries, site=Site(5))
    with user_error("at least one set"):
        run_sets(storybook, few_contexts, {})
    apart = {"a": {Site(1): dictionaries[Site(1)]}, "b": {Site(3): dictionaries[Site(3)]}}
    with user_error("no site in common"):
        run_sets(storybook, few_contexts, apart)
    with user_error("resid_post.1", "b has resid_post.3"):
        run_sets(storybook, few_contexts, apart, site=Site(1))
    with user_error("no selector 'best'", "greedy"):
        replace(CONFIG, selectors=("best",))
    with user_error("no baseline 'nmf'", "pca"):
        replace(CONFIG, baselines=("nmf",))
    with user_error("prompt"):
        run(storybook, few_contexts, dictionaries, config=replace(CONFIG, test_prompts=0))
