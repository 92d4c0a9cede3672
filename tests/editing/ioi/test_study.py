"""The IOI experiment from end to end: what is compared with what, on which prompts, and what is said of it."""

import argparse
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from handmade import random_topk
from planted import unchecked
from tiny import user_error

import subrank.cli.ioi as verb
from editing.ioi.baselines import SHOWN, Baseline
from editing.ioi.curve import Trace, default_counts
from editing.ioi.curve_comparison import compare
from editing.ioi.feature_selection import SELECTORS, SelectionConfig, Selector, greedy
from editing.ioi.feature_sets import KL, SIZE
from editing.ioi.figure import ioi_figure, selection_figure
from editing.ioi.site_experiment import PatchExperiment
from editing.ioi.study import IOIConfig, IOIResult, IOIStudy, run_ioi
from editing.metrics import resampled
from editing.tasks.ioi import Corruption, IOITask, Role
from editing.tasks.score import task_score
from sae_core.data.activations import harvest
from sae_core.data.text import Text
from sae_core.dictionaries.baselines import pca
from sae_core.progress import Progress
from sae_core.sites import Site, Stream
from sae_core.storage import load_set
from subrank.cli.parsers import Verbs

SEARCH = SelectionConfig(n_greedy=3, shortlist=6, n_thresholds=2)
CONFIG = IOIConfig(6, 8, SEARCH, selectors=("greedy", "random"), baselines=("pca",), random_draws=2)


@pytest.fixture(scope="module")
def few_contexts(storybook):
    return Text("storybook", 48, True, 10 * 48).contexts(storybook)


@pytest.fixture(scope="module")
def dictionaries(storybook, few_contexts):
    x = harvest(storybook, few_contexts, (Site(1),))[Site(1)]
    return {Site(1): pca(x), Site(3): random_topk(128, 96, 8), Site(2, Stream.ATTN_OUT): random_topk(128)}


def run(storybook, contexts, sets, corruption=Corruption.IO, config=CONFIG, **where) -> IOIResult:
    """The experiment with several sets by name, or with one, by site."""
    sets = sets if "small" in sets or "a" in sets else {"dictionary": sets}
    with unchecked():  # what takes its time has its types checked in the tests of its parts, and below
        return IOIStudy(storybook, sets, contexts, config).run(corruption, **where)


@pytest.mark.parametrize("corruption", Corruption)
def test_every_corruption_begins_with_the_models_own_score(storybook, few_contexts, dictionaries, corruption):
    config = replace(CONFIG, selectors=("attribution",), baselines=())
    result = run_ioi(storybook, {Site(3): dictionaries[Site(3)]}, few_contexts, corruption, config)
    assert result.own.accuracy.value >= 0.99 and result.own.n == result.n_test == 8 and result.n_selection == 6
    assert result.corruption is corruption and result.comparisons == () and result.sentences() == []


def test_the_experiment_on_storybook(storybook, few_contexts, dictionaries):
    config = replace(CONFIG, selectors=tuple(SELECTORS), baselines=IOIConfig().baselines)
    stages: list[Progress] = []
    result = run(storybook, few_contexts, dictionaries, config=config, on_progress=stages.append)
    assert [(stage.done, stage.total) for stage in stages] == [(done, len(stages)) for done in range(len(stages))]
    names = [(c.name, c.selection) for c in result.curves]
    assert names == [("dictionary", how) for how in SELECTORS] + [(SHOWN[b], "greedy") for b in config.baselines]
    assert set(result.site_kl) == {"resid_post.1", "resid_post.3"}  # the usual streams
    assert result.site == min(result.site_kl, key=result.site_kl.get)
    for own in result.curves:
        assert own.points[0].kl == pytest.approx(result.floors["dictionary"]["nothing"], rel=1e-3)
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
        assert same.points[-1].kl == pytest.approx(result.floors["dictionary"]["all_latents"], rel=1e-2, abs=1e-4)
    assert result.floors["dictionary"]["all_latents_and_error"] == pytest.approx(0, abs=1e-3)
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


def test_a_trained_dictionary_beats_pca_at_small_numbers_of_features(storybook, trained_set):
    """As the source found; control: random directions do not."""
    trained = load_set(trained_set)
    contexts = trained.text.contexts(storybook)[:50]
    config = IOIConfig(12, 24, SelectionConfig(8, 16), selectors=("greedy",), baselines=("pca",))
    result, control = (
        run(storybook, contexts, dictionaries, Corruption.SWAP, config, site=Site(3))
        for dictionaries in ({Site(3): trained.dictionaries[Site(3)]}, {Site(3): random_topk(128, 512, 16)})
    )
    (comparison,), (random_comparison,) = result.comparisons, control.comparisons
    assert {*comparison.better} & {6, 8, 10, 12} and not random_comparison.better
    assert result.sentences()[0].startswith("on the test prompts dictionary leaves less KL than PCA at ")
    assert "there is no number of patched features at which dictionary beats PCA" in control.sentences()[0]


def test_hover_names_the_features_that_came_with_a_point(storybook, few_contexts):
    """With the labels of the set that they are of: a number means something else in another set."""
    sets = {"small": {Site(3): random_topk(128, 32, 4)}, "large": {Site(3): random_topk(128, 96, 8)}}
    result = run(storybook, few_contexts, sets)
    first = {curve.name: curve.order[0] for curve in result.main()}
    assert first["small"].startswith("3_") and first["PCA"].startswith("PCA ")
    labels = {"small": {first["small"]: "<b>"}, "large": {first["small"]: "wrong"} | {first["large"]: "&"}}
    shown = {}
    for line in ioi_figure(result, labels).data:
        if line.customdata is not None:
            shown.setdefault(line.name, [row[2] for row in line.customdata])
    assert shown["small"][:2] == ["", f"<br>+ {first['small']} (&lt;b&gt;)"]
    assert shown["large"][1] == f"<br>+ {first['large']} (&amp;)" and shown["PCA"][1] == f"<br>+ {first['PCA']}"


def test_the_site_can_be_given_and_the_seed_decides(storybook, few_contexts, dictionaries):
    result = run(storybook, few_contexts, dictionaries, site=Site(3))
    assert result.site == "resid_post.3" and list(result.site_kl) == ["resid_post.3"]
    assert result.curves[0].points[-1].n_features == 96
    assert run(storybook, few_contexts, dictionaries, site=Site(3)) == result


def test_attention_and_chosen_positions(storybook, few_contexts, dictionaries):
    site = Site(2, Stream.ATTN_OUT)
    everywhere, end, role = (
        run(storybook, few_contexts, dictionaries, site=site, positions=where) for where in (None, (-1,), (Role.END,))
    )
    assert end.positions == (-1,) and everywhere.positions is None and role.positions == ("END",)
    left, right = (one.floors["dictionary"]["all_latents_and_error"] for one in (everywhere, end))
    assert left != pytest.approx(right, rel=1e-3)
    assert role.curves == end.curves


def test_sites_patched_jointly(storybook, few_contexts):
    """Features of both are ranked together; everything patched at the upper one is the clean run there."""
    sites = (Site(1), Site(3))
    sets = {site: random_topk(128, 32, 4, seed=site.layer) for site in sites}
    config = replace(CONFIG, selectors=("greedy", "attribution"))
    joint = run(storybook, few_contexts, sets, config=config, site=sites)
    assert joint.site == "resid_post.1 + resid_post.3" and list(joint.site_kl) == [joint.site]
    sparse, _, complete = joint.curves
    assert sparse.points[-1].n_features == 64 and complete.points[-1].n_features == 256
    assert {name.split("_")[0] for name in sparse.order} == {"1", "3"}
    assert {name.rsplit("_")[0] for name in complete.order} == {"PCA 1", "PCA 3"}
    assert complete.points[-1].kl == pytest.approx(0, abs=1e-3) and complete.points[0].kl > 1
    assert joint.floors["dictionary"]["all_latents_and_error"] == pytest.approx(0, abs=1e-3)
    # control: with only the lower one patched, what it does not carry stays
    alone = run(storybook, few_contexts, sets, config=config, site=sites[0], positions=(Role.S2,))
    assert alone.floors["dictionary"]["all_latents_and_error"] > 0.1


def test_a_study_reads_text_and_model_once_for_all_its_experiments(storybook, few_contexts, dictionaries, monkeypatch):
    harvested, scored = [], []
    monkeypatch.setattr("editing.ioi.study.harvest", lambda *given: harvested.append(given[2]) or harvest(*given))
    monkeypatch.setattr("editing.ioi.study.task_score", lambda *given: scored.append(given) or task_score(*given))
    study = IOIStudy(storybook, {"dictionary": dictionaries}, few_contexts, replace(CONFIG, selectors=("attribution",)))
    study.baselines([Site(1), Site(3)])
    kinds, sites = (Corruption.IO, Corruption.SWAP), (Site(1), Site(3))
    found = [study.run(kind, site=site) for kind in kinds for site in sites]
    assert harvested == [(Site(1), Site(3))] and len(scored) == 2
    assert [(one.corruption, one.site) for one in found] == [(kind, str(site)) for kind in kinds for site in sites]
    assert found[-1] == run(storybook, few_contexts, dictionaries, Corruption.SWAP, study.config, site=Site(3))


def test_features_are_chosen_without_the_test_prompts(storybook, few_contexts, dictionaries):
    """Their order is that on the selection prompts, whatever the number of test prompts."""
    pairs = IOITask.of(storybook).pairs(storybook, Corruption.IO, "selection", 6, seed=0)
    experiment = PatchExperiment(storybook, pairs, Site(3))
    order = greedy(experiment.patching(dictionaries[Site(3)]), SEARCH, seed=0).order
    result = run(storybook, few_contexts, dictionaries, site=Site(3))
    assert result.curves[0].order == tuple(f"3_{j}" for j in order)


# ---- comparisons -----------------------------------------------------------------------------------


def made(kl: list[float], sizes: list[float], n: int = 40, noise: float = 0.0) -> Trace:
    chance = torch.randn(len(kl), n, generator=torch.Generator().manual_seed(0)).double()
    readout = torch.zeros(len(kl), n, 4).double()
    readout[..., KL] = torch.tensor(kl).double()[:, None] + noise * chance[:1]
    readout[..., SIZE] = torch.tensor(sizes).double()[:, None]
    return Trace(tuple(range(len(kl))), readout)


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
    ours.readout[..., KL] += 0.1 * torch.randn(40, generator=torch.Generator().manual_seed(4)).double()
    found = compare("d", "PCA", ours, theirs, resampled(range(40), 0), [1.0])
    assert found.better == found.worse == []


def test_numbers_without_a_value_are_null(storybook, few_contexts, dictionaries):
    result = run(storybook, few_contexts, dictionaries, site=Site(3))
    broken = replace(result.curves[0].points[0], recovered=math.nan)
    result = replace(result, curves=(replace(result.curves[0], points=(broken,)), *result.curves[1:]))
    assert result.to_json()["curves"][0]["points"][0]["recovered"] is None


# ---- the verb --------------------------------------------------------------------------------------


def asked(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verb.add(Verbs(parser))
    return parser.parse_args(["ioi", "set", *arguments])


def config_of(*arguments: str) -> IOIConfig:
    return verb.ioi_config(asked(*arguments), SimpleNamespace(text=SimpleNamespace(prepend_bos=True)))


def test_the_verbs_defaults_are_the_experiments(capsys):
    assert config_of() == IOIConfig() and config_of("--seed", "3") == IOIConfig(seed=3)
    few = config_of("--prompts", "12", "--thresholds", "4", "--selectors", "random", "greedy", "--baselines")
    assert few.selectors == (Selector.RANDOM, Selector.GREEDY) and few.baselines == ()
    assert (few.test_prompts, few.selection_prompts, few.selection.n_thresholds) == (12, 4, 4)
    with pytest.raises(SystemExit):
        asked("--help")
    said = " ".join(capsys.readouterr().out.split())
    default = IOIConfig()
    for number in (default.test_prompts, default.selection.n_thresholds):
        assert f"(default: {number})" in said
    assert ", ".join(Selector) in said and ", ".join(Baseline) in said


def test_positions_and_sites_asked_for(storybook):
    assert verb._positions(["all"]) is None and verb._positions(["s2", "END", "-3"]) == (Role.S2, Role.END, -3)
    for wrong in ("0", "2", "S3", "-0", "all"):
        with user_error(wrong, "IO, S1, S2, END", "from the end"):
            verb._positions(["-1", wrong])
    sets = {"a": SimpleNamespace(dictionaries=dict.fromkeys([Site(1), Site(3), Site(4)]))}
    sets["b"] = SimpleNamespace(dictionaries=dict.fromkeys([Site(3), Site(4)]))
    for arguments, places in (
        ((), (None,)),
        (("--site", "resid_post.3"), (Site(3),)),
        (("--sites", "all"), (Site(3), Site(4))),
        (("--jointly", "all"), ((Site(3), Site(4)),)),
        (("--jointly", "resid_post.4", "mlp_out.1"), ((Site(1, Stream.MLP_OUT), Site(4)),)),
    ):
        assert verb._places(asked(*arguments), storybook, sets) == places


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
