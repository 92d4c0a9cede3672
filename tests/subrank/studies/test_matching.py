"""Matching: the same features are known again in another order, another layer and other tokens, and others are not."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from handmade import normal
from planted import unchecked
from tiny import user_error
from verbs import one_line, run

import subrank as sr
from sae_core.data.text import Text
from sae_core.dictionaries.saes import ReLUSAE
from sae_core.sites import Site
from sae_core.storage import DictionarySet
from subrank.studies.matching import _Counts
from subrank.studies.relations.correlations import FEWEST, Correlations, match
from subrank.studies.relations.matching_page import sentences
from subrank.studies.relations.shared_spans import on_spans, shared_spans, token_ends
from subrank.studies.relations.top_places import TopPlaces

SITE = Site(0)


def test_spans_end_where_tokens_of_both_end():
    words, others = ["the", " cat", "s", " sat"], ["th", "e ", "cats sa", "t"]
    ends, other_ends = token_ends(words), token_ends(others)
    assert (ends, other_ends) == ([3, 6, 7, 10], [2, 3, 9, 10])
    spans, other_spans = shared_spans(ends, other_ends)
    assert spans.tolist() == [0, 1, 1, 1] and other_spans.tolist() == [0, 0, 1, 1]


def test_white_space_belongs_to_the_span_before_it_and_other_text_has_none():
    spans, others = shared_spans(token_ends(["\n", "a", "\n", "b"]), token_ends(["a\n", "b"]))
    assert spans.tolist() == [0, 0, 0, 1] and others.tolist() == [0, 1]
    assert shared_spans(token_ends(["ab"]), token_ends(["abc"])) is None
    assert shared_spans([], [3]) is None and shared_spans([0], [0]) is None


def test_a_span_has_the_largest_activation_of_its_tokens():
    codes = torch.tensor([[1.0, 0.0], [3.0, 0.5], [2.0, 0.0]])
    assert on_spans(codes, torch.tensor([0, 0, 1]), 2).tolist() == [[3.0, 0.5], [2.0, 0.0]]


def planted(n_places: int = 400, n: int = 6):
    """Sparse activations of n latents; the same in another order, with noise, and as many that are not theirs."""
    chance = torch.Generator().manual_seed(0)
    a = torch.rand(n_places, n, generator=chance) * (torch.rand(n_places, n, generator=chance) < 0.15)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    other = (a[:, order] + 0.05 * torch.rand(n_places, n, generator=chance)) * (a[:, order] > 0)
    foreign = torch.rand(n_places, n, generator=chance) * (torch.rand(n_places, n, generator=chance) < 0.15)
    return a, torch.cat([other, foreign], 1), order


def correlations(a, b) -> Correlations:
    sums = Correlations(a.shape[1], b.shape[1])
    for rows, others in zip(a.split(90), b.split(90), strict=True):
        sums.add(rows, others)
    return sums


def test_what_does_not_fit_in_memory_is_said_before_it_is_read():
    large = SimpleNamespace(directions=torch.empty(10**8, 1, device="meta"))
    readers = [SimpleNamespace(saes=SimpleNamespace(dictionaries={SITE: large})) for _ in range(2)]
    with user_error("not enough memory", "--other-site"):
        _Counts(readers, ([SITE], [SITE]))


def test_correlations_are_numpys():
    a, b, _ = planted()
    expected = np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :]
    torch.testing.assert_close(correlations(a, b).pearson(), torch.tensor(expected).float(), atol=1e-5, rtol=0)
    a[:, 0] = 1.0
    assert (correlations(a, b).pearson()[0] == 0).all()


def test_planted_partners_are_named_and_places_that_do_not_belong_together_have_none():
    a, b, order = planted()
    matched = match(SITE, Site(1), correlations(a, b), correlations(a, b.roll(57, 0)), 0)
    assert matched.matched.value == 1 and matched.matched_other.value == 0.5
    assert matched.matched_by_chance.value == matched.matched_other_by_chance.value == 0
    assert matched.best.value > 0.95 and matched.best_by_chance.value < 0.4
    assert {(i, j) for i, j, _ in matched.pairs} == {(i, j) for j, i in enumerate(order.tolist())}
    assert [r for *_, r in matched.pairs] == sorted((r for *_, r in matched.pairs), reverse=True)


def test_latents_that_are_hardly_active_are_left_out():
    a, b, _ = planted()
    a[:, 2] = 0
    a[: FEWEST - 1, 2] = 1
    matched = match(SITE, SITE, correlations(a, b), correlations(a, b), 0)
    assert matched.n == 5 and 2 not in {i for i, *_ in matched.pairs}
    none = match(SITE, SITE, correlations(a * 0, b), correlations(a * 0, b), 0)
    assert none.n == 0 and none.pairs == () and np.isnan(none.matched.value)
    names, full = ("a", "b"), match(SITE, Site(1), correlations(a, b), correlations(a, b.roll(57, 0)), 0)
    assert "at resid_post.1" in sentences(names, [none, full])[0]  # what could not be compared is not the nearest
    single = match(SITE, SITE, correlations(a, b), Correlations(a.shape[1], b.shape[1]), 0)
    assert single.matched.value == full.matched.value and np.isnan(single.matched_by_chance.value)


def test_a_label_is_where_a_latent_is_most_active():
    tops = TopPlaces(2)
    tops.add(torch.tensor([[0.1, 0.0], [0.9, 0.0]]), ["small", "large"])
    tops.add(torch.tensor([[0.5, 0.0], [0.8, 0.0]]), [" middle", "large"])
    assert tops.label(0) == "large · middle · small" and tops.label(1) == ""


class Letters:
    """Reads a passage token by token; latent i is active on a token by how many letters i it has."""

    def __init__(self, cut):
        self.cut = cut
        self.saes = SimpleNamespace(dictionaries={SITE: SimpleNamespace(directions=torch.zeros(3, 1))})

    def read(self, passage, sites):
        words = self.cut(passage)
        codes = torch.tensor([[float(letter in word) for letter in "abc"] for word in words])
        return words, dict.fromkeys(sites, codes)


def test_features_are_known_again_in_another_models_tokens():
    """Words here, letters there: a span is a word, on which a latent is active if it is on one of its letters."""
    chance = np.random.default_rng(0)
    passages = [" ".join("".join(chance.choice([*"abcdef"], 3)) for _ in range(20)) for _ in range(12)]
    counts = _Counts([Letters(str.split), Letters(list)], ([SITE], [SITE]))
    assert len([*counts.steps(passages)]) == 12 and counts.n_spans == 240 and counts.skipped == 0
    (matched,) = counts.matches(0)
    assert matched.matched.value == 1 and matched.matched_by_chance.value == 0
    assert [(i, j) for i, j, _ in sorted(matched.pairs)] == [(0, 0), (1, 1), (2, 2)]
    shouted = _Counts([Letters(str.split), Letters(lambda passage: [*passage, "!"])], ([SITE], [SITE]))
    assert len([*shouted.steps(passages)]) == shouted.skipped == 12 and shouted.n_spans == 0


# ---- the verb --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(storybook, tmp_path_factory):
    """Two sets of storybook: the second has the first one's latents in reverse order, at two sites."""
    sets, directions = {}, normal(12, 128)
    for name, rows, layers in (("first", directions, (1,)), ("second", directions.flip(0), (1, 4))):
        folder = tmp_path_factory.mktemp(name)
        dictionaries = {}
        for layer in layers:
            sae = ReLUSAE(128, 12, generator=torch.Generator())
            with torch.no_grad():
                sae.W_dec.copy_(torch.nn.functional.normalize(rows, dim=-1))
                sae.W_enc.copy_(sae.W_dec.T)
            dictionaries[Site(layer)] = sae.requires_grad_(False)
        text = Text("storybook", 32, True, max_tokens=4_000)
        DictionarySet("storybook", storybook.fingerprint(), text, dictionaries).save(folder)
        sets[name] = folder
    return sets


@pytest.fixture(scope="module")
def result(storybook, folders) -> sr.Result:
    sets = {name: sr.load(folder) for name, folder in folders.items()}
    with unchecked():
        return sr.matching(sets, models=dict.fromkeys(sets, storybook), contexts=6, progress=False)


def test_two_sets_are_compared_at_all_sites(result, tmp_path):
    here, above = result.matches
    assert (here.site, here.other, above.other) == (Site(1), Site(1), Site(4))
    assert here.matched.value == 1 and all(i + j == 11 for i, j, _ in here.pairs)
    assert here.best.value == pytest.approx(1) and above.best.value < 0.999
    result.save(tmp_path)
    again = sr.load_result(tmp_path)
    assert json.dumps(again.to_dict()) == json.dumps(result.to_dict()) and again.lines() == result.lines()
    (line,) = result.lines()
    assert "100%" in line and "by chance" in line and result.best[0].words == result.best[0].partner_words


def test_one_set_is_compared_with_itself_through_the_layers(storybook, folders):
    sets = {"only": sr.load(folders["second"])}
    with unchecked():
        result = sr.matching(sets, models={"only": storybook}, contexts=4, progress=False)
    grid = {(each.site.layer, each.other.layer): each.best.value for each in result.matches}
    assert grid[1, 1] == pytest.approx(grid[4, 4]) == pytest.approx(1) and grid[1, 4] < 0.999
    assert [each.split(" ")[0] for each in result.lines()] == ["resid_post.1", "resid_post.4"]


@pytest.mark.slow
def test_the_command_writes_what_the_function_returns(result, folders, tmp_path, capsys):
    status, printed, _ = run(capsys, "study", "matching", *folders.values(), "--contexts", 6, "--out", tmp_path)
    numbers = json.loads((tmp_path / "result.json").read_text())
    assert status == 0 and numbers["n_spans"] == result.n_spans and "partner" in printed


def test_what_makes_no_sense_is_one_line(storybook, folders, tmp_path, capsys):
    sets = {name: sr.load(folders["first"]) for name in "abc"}
    with user_error("there are 3"):
        sr.matching(sets, models=dict.fromkeys(sets, storybook), progress=False)
    with user_error("resid_post.3"):
        sr.matching({"a": sets["a"]}, models={"a": storybook}, site="resid_post.3", progress=False)
    assert "resid_post.2" in one_line(
        capsys, "study", "matching", folders["first"], "--other-site", "resid_post.2", "--out", tmp_path
    )
