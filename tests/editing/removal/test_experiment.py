"""The experiment from end to end: where everything is known, and on storybook."""

import json
from dataclasses import replace

import pytest
import torch
from handmade import Zero
from planted import unchecked
from removal_world import CONFIG, LAST, MIDDLE, D, World, holds_its_value, named
from tiny import user_error

from editing.removal.edits.erasers import ERASERS
from editing.removal.experiment import remove, split_text
from editing.removal.measurement.evaluation import EVERYWHERE, Method
from editing.removal.prompts.capability import NO_CONCEPT, capability_of
from editing.removal.result import RemovalResult
from editing.tasks.pairs import at_end
from sae_core.codec import from_plain
from sae_core.dictionaries.baselines import Basis
from sae_core.sites import Site, Stream


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def result(world) -> RemovalResult:
    return world.removed({Site(0): world.whole, Site(1): world.whole}, random_draws=3, max_features=4)


def test_the_fit_finds_the_latent_that_alone_carries_the_class(result):
    """And no other, at both layers, and removes the class exactly; random edits of that size do not."""
    features = named(result)[Method.FEATURES]
    assert features.features == (f"{Site.parse(result.site).layer}_0",)
    assert features.strength * features.strengths[0] == pytest.approx(1.0, abs=0.03)
    assert features.left <= 0.2 and features.accuracy.value == pytest.approx(0.5, abs=0.1)
    assert {*features.transfer} == {"other"} and abs(features.transfer["other"].value - 0.5) <= 0.2
    other = next(m for m in result.elsewhere if m.method == Method.FEATURES)
    assert other.site != result.site and other.left <= 0.2
    for m in (*result.methods, *result.elsewhere):
        if m.method in (Method.RANDOM_FEATURES, Method.RANDOM_DIRECTIONS):
            assert m.auroc.value > 0.9


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
    random, variants = (Method.RANDOM_FEATURES, Method.RANDOM_DIRECTIONS), (Method.PLAIN, Method.MEAN, Method.RESAMPLED)
    assert [*methods] == [Method.FEATURES, *variants, *ERASERS, *random] and len(methods) == len(result.methods)
    assert {m.site for m in result.methods} == {result.site} and {m.site for m in result.everywhere} == {EVERYWHERE}
    for others in (result.elsewhere, result.everywhere):
        assert [m.method for m in others] == [Method.FEATURES, *ERASERS, *random]
    for method in (*result.methods, *result.elsewhere, *result.everywhere):
        assert method.damage.value > 0 and method.edit_size > 0 and 0 <= method.accuracy.value <= 1
        for name in ("auroc", "within", "accuracy", "gap", "damage", "rise"):
            assert holds_its_value(getattr(method, name)), (method.method, name)
    assert result.site in result.sentence() and "80%" in result.sentence() and "\n" not in result.sentence()
    assert methods[Method.PLAIN].features == methods[Method.FEATURES].features and result.share == 0.8
    assert "of 2 sites" in result.verdict() and "At all layers at once" in result.verdict()


def test_random_edits_are_of_the_same_size_at_one_site_and_at_all(result):
    for rows in (named(result), {m.method: m for m in result.everywhere}):
        for name in (Method.RANDOM_FEATURES, Method.RANDOM_DIRECTIONS):
            assert rows[name].edit_size == pytest.approx(rows[Method.FEATURES].edit_size, rel=1e-3)
    assert [len(named(result)[m].draws) for m in (Method.RANDOM_FEATURES, Method.RANDOM_DIRECTIONS)] == [3, 3]


def test_a_curve_begins_at_the_unedited_model_and_passes_through_the_method(result):
    rows = {(m.site, m.method): m for m in (*result.methods, *result.elsewhere, *result.everywhere)}
    assert {curve.site for curve in result.curves} == {"resid_post.0", "resid_post.1", EVERYWHERE}
    for curve in result.curves:
        row, points = rows[curve.site, curve.method], {point.strength: point for point in curve.points}
        assert {0.0, 0.5, 1.0} <= {*points} and [*points] == sorted(points)
        assert points[0.0].damage.value == 0 and points[0.0].auroc.value == result.own_auroc
        # at all layers the strength of a method is that of each of its edits, by which the curve goes too
        assert points[round(row.strength, 4)].damage == row.damage and points[round(row.strength, 4)].auroc == row.auroc
        assert bool(curve.place) == (curve.method in ERASERS)


def test_what_is_compared_is_read_off_the_curves(result):
    for each in result.comparisons:
        curves = result.curves_at(each.site)
        assert each.features == curves[Method.FEATURES].at(each.share)
        assert each.other == curves[each.rival].at(each.share)
    assert {each.share for each in result.comparisons} == {0.5, 0.8, 0.9}


def test_the_result_goes_to_json_without_nan(result):
    numbers = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert numbers["sentence"] == result.sentence() and numbers["verdict"] == result.verdict()
    assert "edits" not in numbers and len(result.edits) == 1 and result.edits[0].mask is None
    assert from_plain(RemovalResult, numbers) == result  # which does not compare the edits
    assert {curve["method"] for curve in numbers["curves"]} >= {"features", "LEACE", "mean difference"}
    assert {c["site"] for c in numbers["comparisons"]} == {"resid_post.0", "resid_post.1", "all layers"}
    assert numbers["resampled"] == "names and templates, crossed" and numbers["methods"][0]["method"] == "features"


def test_text_for_choosing_and_for_reporting_are_two_halves(world):
    """Once contexts were dealt out in turn, so that a long document lay in both."""
    to_choose, to_report = split_text(world.contexts[:10])
    assert torch.equal(to_choose, world.contexts[:5]) and torch.equal(to_report, world.contexts[5:10])


def test_too_little_text_is_refused(world):
    with user_error("at least 8 held-out contexts", "there are 7"):
        remove(world.model, world.capability(), {Site(0): world.whole}, world.contexts[:7], CONFIG)


@pytest.mark.slow
def test_classes_that_are_no_concept_are_neither_erased_nor_read(world):
    """Their erasers would do next to nothing, and features beside them would win whatever they do."""
    task = world.capability(concept=False, notes=("the classes are no concept",))
    result = world.removed({Site(0): world.whole, Site(1): world.whole}, task)
    assert not {*ERASERS} & {*named(result)} and Method.RANDOM_FEATURES in named(result)
    assert "not compared" in result.verdict() and "no concept" in result.notes[0] and "LEACE" not in result.sentence()
    assert all(m.probe is None and m.probe_last is None for m in (*result.methods, *result.everywhere))
    assert named(result)[Method.FEATURES].left <= 0.2 and not {*ERASERS} & {m.method for m in result.everywhere}
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.slow
def test_a_site_without_features_for_it_is_passed_over(world):
    """Once, one such site ended the experiment at all of them."""
    result = world.removed({Site(0): world.whole, Site(1): Zero(D)})
    assert result.site == "resid_post.0" and result.elsewhere == () and result.everywhere == ()
    with user_error("no feature"):
        world.removed({Site(0): Zero(D)})


@pytest.mark.slow
def test_a_dictionary_of_few_latents_has_random_features_too(world):
    """Once, fewer than ten latents could not be drawn from; with none left the error says so."""
    six, single = (Basis(world.whole.directions[:n], world.whole.mean) for n in (6, 1))
    assert named(world.removed({Site(0): six}))[Method.RANDOM_FEATURES].auroc.value > 0.9
    with user_error("0 active latents besides the 1"):
        world.removed({Site(0): single})


def test_sites_that_cannot_be_edited_or_are_not_there_are_refused(world):
    with user_error("resid_post", "attn_out.1"):
        world.removed({Site(1, Stream.ATTN_OUT): world.whole})
    with user_error("resid_post.4", "resid_post.0"):
        world.removed({Site(0): world.whole}, site=Site(4))


def test_a_budget_that_allows_nothing_is_refused(world):
    with user_error("budget", "by hand"):
        world.removed({Site(0): world.whole}, budget=1e-12)


@pytest.mark.slow
def test_a_direction_that_carries_most_of_pronouns_is_found_and_ablated(storybook, task, contexts):
    """The difference of the class means at the ends of prompts, on names that are not the test's."""
    x = at_end(storybook.record(task.fitting.tokens, [LAST])[LAST], task.fitting.end).double()
    ahead, behind = (x[task.fitting.positive == label].mean(0) for label in (True, False))
    rest = torch.randn(127, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([(ahead - behind)[None], rest]).T).Q.T.float().contiguous()
    planted = {LAST: Basis(basis, (ahead + behind).float() / 2), MIDDLE: Zero(128)}
    with unchecked():
        result = remove(storybook, task, planted, contexts, CONFIG)
    assert result.own_auroc >= 0.99 and result.own.n == CONFIG.test_prompts == 48 and result.everywhere == ()
    features = named(result)[Method.FEATURES]
    assert features.features[0] == "5_0" and abs(features.auroc.value - 0.5) < 0.3
    assert {*features.transfer} == {*task.transfers} and result.notes == task.notes
    assert named(result)[Method.RANDOM_FEATURES].auroc.value > 0.95


@pytest.mark.slow
def test_pairs_of_many_answers_are_no_concept_and_can_be_removed(storybook, components, contexts):
    task = capability_of("brackets", storybook, replace(CONFIG, selection_prompts=24, test_prompts=32), most=48)
    assert not task.concept and "pairs of answers" in task.notes[-1]
    more = replace(CONFIG, shortlist=24, max_features=16)
    with unchecked():
        result = remove(storybook, task, {MIDDLE: components[MIDDLE]}, contexts, more)
    assert result.task == "brackets" and result.own_auroc > 0.9 and Method.LEACE not in named(result)
    assert result.resampled == "templates, then prompts" and NO_CONCEPT[-40:] in result.notes[-1]
