"""The study of explanations: what is explained rightly scores 1, what is another's 0; one shape of result; names."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from handmade import random_topk
from planted import generator
from planted_rules import ON_C, ON_E, SILENT, SITE, planted, texts
from scripted_llm import Oracle, chat, oracle_says, serving
from tiny import user_error
from verbs import one_line, run

import subrank as sr
from circuits.features.catalogue import read_catalogue
from circuits.features.survey import Survey
from circuits.graph import FeatureGraph, Node
from editing.ioi.baselines import Baseline
from sae_core.data.text import Text
from sae_core.sites import FeatureId
from sae_core.storage import DictionarySet
from subrank.experiments.circuit import named
from subrank.pages.explorer import Captions, explore
from subrank.pages.names import read_names
from subrank.result import Provenance
from subrank.settings.fields import make
from subrank.settings.studies import ExplainSettings
from subrank.studies.explain import Explanations
from subrank.studies.explaining.claims import claims_by_model, claims_by_rule
from subrank.studies.explaining.methods import Method, one_sided
from subrank.studies.explaining.page import as_names
from subrank.studies.explaining.rows import Tally, methods_of, rows_of, shown_of
from subrank.studies.explaining.subjects import subjects_of
from subrank.studies.llm.answers import Answers
from subrank.studies.llm.questions import Reply

SETTINGS = make(ExplainSettings, {"fragment": 8, "examples": 4})
SHUFFLED = "set, others' explanations"


@pytest.fixture(scope="module")
def subjects():
    """Features that are active on a token each, of a model made by hand."""
    model, dictionaries = planted()
    catalogue = read_catalogue(Survey(model, dictionaries), texts(60, 1), texts(60, 2))
    features = tuple(FeatureId(SITE, index) for index in (ON_C, SILENT, ON_E))
    return subjects_of(Method("set", catalogue, features, is_set=True), SETTINGS)


def test_a_feature_that_is_silent_has_nothing_to_explain(subjects):
    assert [subject.feature.index for subject in subjects] == [ON_C, ON_E]


@pytest.mark.parametrize("who", ["rules", "a language model"])
def test_right_explanations_score_1_and_those_of_others_0(subjects, who):
    claims = claims_by_rule(subjects) if who == "rules" else claims_by_model(subjects, Answers(Oracle()), 0)
    rows = rows_of(claims)
    by_method = {method: [row for row in rows if row.method == method] for method in methods_of(rows)}
    assert [len(by_method[method]) for method in ("set", SHUFFLED)] == [2, 2]
    for row in by_method["set"]:
        assert row.text.endswith("t5" if row.feature.index == ON_C else "t7")
        assert min(row.scores.top, row.scores.top_and_random, row.scores.all) > 0.99 and not row.scores.unanswered
        assert row.scores.detection == row.scores.fuzzing == row.scores.precision == row.scores.recall == 1
    for row in by_method[SHUFFLED]:
        assert abs(row.scores.top_and_random) < 0.4 and row.scores.precision == row.scores.recall == 0
        assert row.scores.fuzzing <= 0.6


def test_answers_that_are_none_are_counted_and_score_0(subjects):
    class Silent(Oracle):
        def answer(self, question):
            return Reply("I'm sorry, I cannot help with that." if not question.n else '{"level')

    class Half(Oracle):
        def answer(self, question):
            return super().answer(question) if len(question.text) % 2 or not question.n else Reply("")

    silent = rows_of(claims_by_model(subjects, Answers(Silent()), 0))
    own = [row for row in silent if row.method == "set"]
    assert all(row.text == "" and row.scores.unanswered == 1 and row.scores.top_and_random == 0 for row in own)
    read = [row for row in silent if row.method.endswith("the rule as read")]
    assert all(row.text and row.scores.unanswered == 1 for row in read)
    half = [row.scores for row in rows_of(claims_by_model(subjects, Answers(Half()), 0)) if row.method == "set"]
    assert any(0 < score.unanswered < 1 for score in half)


def test_directions_beside_are_turned_to_where_something_stands_out():
    """Of a coordinate that is skewed below its mean the negative is taken; latents are never negative."""
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    x[:10, 1] -= 20
    basis = one_sided(x, [Baseline.NEURONS, Baseline.PCA], 4, generator())
    turned = basis.directions[:4]
    (down,) = turned[turned[:, 1].abs() == 1]
    assert down[1] == -1 and basis.encode(x).min() >= 0 and len(basis.directions) == 8
    assert basis.encode(x)[:10].max() > 15


# ---- results and names -----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["rules", "a language model"])
def planted_result(request, subjects) -> Explanations:
    by_rule = request.param == "rules"
    claims = claims_by_rule(subjects) if by_rule else claims_by_model(subjects, Answers(Oracle()), 0)
    settings = {"seed": 0, "sets": {"set": None}}
    provenance = Provenance("explain", "", "", {}, "by hand", "", "cpu", settings, "")
    examples = shown_of(claims, subjects[0].method.catalogue.names)
    return Explanations("rules", rows_of(claims), examples, Tally(1, 0, 0), provenance)


def test_a_result_is_read_back_as_it_was(planted_result, tmp_path):
    page = planted_result.save(tmp_path)
    again = sr.load_result(tmp_path)
    assert json.dumps(again.to_dict()) == json.dumps(planted_result.to_dict()) and len(again.lines()) <= 10
    assert list(again.figures()) == ["layers"] and "t5" in page.read_text()


def test_explanations_are_names_in_circuits_and_in_their_explorer(planted_result, tmp_path):
    planted_result.save(tmp_path)
    names = read_names(tmp_path / "names.json")
    on_c = FeatureId(SITE, ON_C)
    assert {node: name.split()[-1] for node, name in names.items()} == {
        str(on_c): "t5",
        str(FeatureId(SITE, ON_E)): "t7",
    }
    graph = named(FeatureGraph(on_c, (Node(on_c), Node(FeatureId(SITE, 0), name="by hand")), ()), names)
    assert [node.name for node in graph.nodes] == [names[str(on_c)], "by hand"]
    explore(tmp_path / "explore", graph, [], captions=Captions(names=names))
    assert f'"label":"{names[str(on_c)]}"' in (tmp_path / "explore" / "data" / "graph.js").read_text()


def test_an_explanation_that_predicts_nothing_is_no_name(planted_result):
    first, *rest = planted_result.rows
    poor = replace(first, scores=replace(first.scores, top_and_random=0.1))
    assert as_names((poor, *rest)).keys() == as_names(planted_result.rows).keys() - {str(first.feature)}


# ---- the verb --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(storybook, tmp_path_factory) -> Path:
    """A set of storybook with one small dictionary that was not trained."""
    folder, site = tmp_path_factory.mktemp("set"), storybook.sites()[0]
    text = Text("storybook", 32, True, max_tokens=4_000)
    DictionarySet("storybook", storybook.fingerprint(), text, {site: random_topk(128, 16, 2)}).save(folder)
    return folder


@pytest.mark.slow
def test_the_command_asks_a_server_once(folder, tmp_path, capsys, monkeypatch):
    """With it, and then again: the second run asks nothing, and says the same; the key is in no file."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")

    def answer(_number, _headers, request):
        return 200, {}, chat(oracle_says(request["messages"][0]["content"]))

    with serving(answer) as (url, requests):
        command = ["study", "explain", folder, "--features", 2, "--contexts", 16, "--examples", 2, "--out", tmp_path]
        command += ["--llm", url, "--llm-model", "m", "--beside"]
        status, printed, _ = run(capsys, *command)
        first, n = json.loads((tmp_path / "result.json").read_text()), len(requests)
        assert run(capsys, *command)[0] == status == 0 and len(requests) == n > 10
    again = json.loads((tmp_path / "result.json").read_text())
    assert f"at most {n}" in printed.replace(",", "") or "questions" in printed
    assert again["rows"] == first["rows"] and again["tally"] == {**first["tally"], "asked": 0, "known": n}
    assert len({row["method"] for row in first["rows"]}) == 4 and len(first["rows"]) == 8
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"sk-secret" in content for content in written)


def test_what_makes_no_sense_is_one_line(folder, tmp_path, capsys):
    for options, words in (
        (["--llm", "http://127.0.0.1:9/v1"], "--llm-model"),
        (["--llm", "none", "--llm-model", "m"], "--llm-model"),
        (["--llm-model", "m"], "--llm"),
        (["--llm", "./nowhere"], "no model directory"),
        (["--llm", "http://me:pw@there/v1", "--llm-model", "m"], "OPENAI_API_KEY"),
        (["--site", "mlp_out.1"], "no dictionary"),
    ):
        assert words in one_line(capsys, "study", "explain", folder, "--out", tmp_path, *options)
    with user_error("no set"):
        sr.explain(sr.load_model("storybook"), {"a": 1}, progress=False)
