"""Every verb on its smallest settings, from the same trained dictionaries, ending in the demo."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from graph_json import faults
from planted import unchecked
from verbs import SHORT_TRAINING, most_active, one_line, result_of, run

import subrank as sr
from circuits.discovery.target_causes import CauseSearch
from circuits.evaluation import CircuitEvaluation
from editing.removal.config import RemovalConfig
from sae_core.data.reading import bos_of
from sae_core.data.text import Text
from sae_core.digest import digest
from sae_core.errors import UserError
from sae_core.sites import Site
from sae_core.storage import load_set
from sae_core.training.config import TrainConfig
from sae_core.training.run import Run
from subrank.cli.demo import Plan, plan_of, prepare_demo, run_demo
from subrank.settings.circuit import CircuitSettings
from subrank.settings.demo import DemoSettings
from subrank.settings.experiments import IOISettings

ROOT = Path(__file__).resolve().parents[3]


pytestmark = pytest.mark.slow


def test_train_writes_a_set_that_states_its_quality(storybook, trained_set):
    dictionaries = load_set(trained_set).dictionaries
    assert [str(site) for site in dictionaries] == [f"resid_post.{layer}" for layer in range(6)]
    quality = result_of(trained_set)["dictionaries"]
    assert quality.keys() == {str(site) for site in dictionaries}
    assert all(0 < row["fvu"] < 1 and row["l0"] <= 16 and row["loss_recovered"] <= 1 for row in quality.values())
    assert not (trained_set / "checkpoint").exists()
    text, digests = load_set(trained_set).text, json.loads((trained_set / "provenance.json").read_text())["digests"]
    assert digests == {"dictionaries": digest(dictionaries), "text": text.digest}
    assert text.read(storybook).digest == text.digest


def test_ioi_states_the_models_own_score_first(storybook_set, tmp_path, capsys):
    options = ["--prompts", 6, "--corruption", "swap", "--site", "resid_post.4", "--thresholds", 2]
    options += ["--selectors", "attribution", "greedy", "threshold", "random", "--contexts", 16]
    status, printed, _ = run(capsys, "ioi", storybook_set, "--out", tmp_path, *options)
    assert status == 0
    score, verdict = (printed.index(text) for text in ("the model itself does this task", "chosen on other prompts"))
    assert score < verdict
    result = result_of(tmp_path)
    assert list(result) == ["own_score", "dictionaries", "labels", "ioi"]
    curves = {curve["name"]: curve["points"] for curve in result["ioi"][0]["curves"]}
    assert curves.keys() == {"dictionary", "PCA", "non-negative PCA", "neurons", "random basis"}
    chosen = [curve["selection"] for curve in result["ioi"][0]["curves"] if curve["name"] == "dictionary"]
    assert chosen == ["attribution", "greedy", "threshold", "random", "each pair itself"]
    assert all(name in result["ioi"][0]["sentences"][0] for name in ("dictionary", "PCA"))
    start, *_, end = curves["PCA"]
    assert end["kl"]["value"] < 1e-4 < start["kl"]["value"] and end["recovered"]["value"] > 0.999
    assert "plotly.min.js" in (tmp_path / "ioi.html").read_text() and (tmp_path / "plotly.min.js").is_file()


def test_circuit_is_written_as_json_dot_svg_and_png(storybook_set, tmp_path, capsys):
    target = most_active(storybook_set)
    options = ["--target", target, "--contexts", 40, "--max-targets", 2, "--examples", 16, "--null", 5, "--keep", 2]
    options += ["--held", 16, "--cards", 8, "--draws", 0, "--cover", 1]
    status, printed, error = run(capsys, "circuit", storybook_set, "--out", tmp_path, *options)
    assert status == 0, error
    result = json.loads((tmp_path / "result.json").read_text())
    assert {"reached", "scores", "controls", "curves", "stability", "moves"} == result["judgement"].keys()
    assert CircuitEvaluation.from_json(result["judgement"]).to_json() == result["judgement"]
    assert len(result["judgement"]["scores"]) == 2 and "faithfulness" in printed + error
    assert (tmp_path / "explore" / "index.html").is_file() and not (tmp_path / "steps.jsonl").exists()
    assert json.loads((tmp_path / "node_link.json").read_text())["nodes"]
    assert not list(faults(json.loads((tmp_path / "neuronpedia" / "graph.json").read_text())))
    graph = json.loads((tmp_path / "circuit.json").read_text())
    assert graph["target"] == target and graph["edges"] and graph["facts"]["targets_asked"] == 2
    assert "digraph" in (tmp_path / "circuit.dot").read_text()
    assert "<svg" in (tmp_path / "circuit.svg").read_text()
    assert (tmp_path / "circuit.png").read_bytes().startswith(b"\x89PNG")
    assert {(tmp_path / f"circuit_story.{kind}").stat().st_size > 0 for kind in ("dot", "svg", "png", "pdf")} == {True}
    loaded = sr.load_result(tmp_path)
    assert loaded.draw_story(tmp_path / "again.dot").read_text() == (tmp_path / "circuit_story.dot").read_text()
    assert "Faithfulness" in "".join(ElementTree.parse(tmp_path / "circuit.svg").getroot().itertext()).title()
    assert json.loads(json.dumps(loaded.to_dict(), allow_nan=False)) == result and "<table" in loaded._repr_html_()
    assert len(str(loaded).splitlines()) <= 10 and all(line in printed for line in loaded.evaluation.lines())


@pytest.mark.rest
def test_a_circuit_of_features_that_suffice_is_scored_beside_random_ones(trained_set, tmp_path, capsys):
    """Found on one half of the task's names and templates, scored on the other; the graph has all of its nodes."""
    options = ["--target", "task: ioi", "--nodes", 16, "--cover", 1, "--contexts", 40, "--held", 40, "--examples", 16]
    options += ["--null", 0, "--cards", 0, "--draws", 2]
    status, printed, error = run(capsys, "circuit", trained_set, "--out", tmp_path, *options)
    assert status == 0 and "pruning" in printed, error
    result = json.loads((tmp_path / "result.json").read_text())
    nodes = [node["id"] for node in result["circuit"]["nodes"] if node["id"].startswith("5_")]
    assert 0 < len(nodes) <= 16 and result["circuit"]["facts"]["nodes"] == f"{len(nodes)} that suffice"
    resampled = result["judgement"]["controls"][1]
    circuit, drawn = (resampled[name] for name in ("circuit", "random"))
    assert circuit["ablated"]["value"] > max(draw["ablated"]["value"] for draw in drawn)
    assert len(result["judgement"]["curves"]) == 2 and 0 <= result["judgement"]["stability"]["mean"]["nodes"] <= 1
    assert "--nodes" in one_line(capsys, "circuit", trained_set, "--nodes", -1)


@pytest.mark.rest
def test_an_interrupted_search_goes_on_where_it_was(storybook_set, tmp_path, capsys, monkeypatch):
    """The second run takes the first step over, and ends with the same circuit as one that was never stopped."""
    target = most_active(storybook_set)
    options = ["--target", target, "--contexts", 50, "--max-targets", 2, "--null", 0, "--held", 0, "--cards", 0]
    assert run(capsys, "circuit", storybook_set, "--out", tmp_path / "whole", *options)[0] == 0
    causes_of, targets = CauseSearch.causes_of, []

    def failing(self, target, *rest, **how):
        targets.append(target.node)
        if len(targets) == 2:
            raise UserError("the lights went out")
        return causes_of(self, target, *rest, **how)

    monkeypatch.setattr(CauseSearch, "causes_of", failing)
    assert run(capsys, "circuit", storybook_set, "--out", tmp_path / "halves", *options)[0] == 2
    assert len((tmp_path / "halves" / "steps.jsonl").read_text().splitlines()) == 2
    targets.append(None)  # from here on nothing fails
    assert run(capsys, "circuit", storybook_set, "--out", tmp_path / "halves", *options)[0] == 0
    assert targets.count(targets[0]) == 1, "the first target is not searched again"
    whole, halves = (json.loads((tmp_path / name / "circuit.json").read_text()) for name in ("whole", "halves"))
    assert whole == halves


def test_remove_reports_every_method_on_the_same_site(trained_set, tmp_path, capsys):
    status, printed, _ = run(
        capsys, "remove", trained_set, "--out", tmp_path, "--site", "resid_post.5", "--prompts", 32
    )
    assert status == 0 and "the model itself does this task" in printed
    removal = result_of(tmp_path)["removal"]
    methods = {method["method"]: method for method in removal["methods"]}
    assert {"features", "LEACE", "mean difference", "random features"} <= methods.keys()
    assert {method["site"] for method in removal["methods"]} == {"resid_post.5"}
    assert methods["random features"]["edit_size"] == pytest.approx(methods["features"]["edit_size"], rel=0.02)
    assert removal["own_auroc"] > 0.99 and removal["sentence"] in printed and removal["verdict"] in printed
    needed = {curve["method"]: [each["share"] for each in curve["needed"]] for curve in removal["curves"]}
    assert needed["features"] == needed["LEACE"] == [0.5, 0.8, 0.9]
    assert {each["rival"] for each in removal["comparisons"]} >= {"LEACE", "mean difference", "features, set to zero"}


def test_steer_shows_texts_side_by_side(storybook_set, tmp_path, capsys):
    feature = most_active(storybook_set)
    options = ["--feature", feature, "--strengths", -4, 1, 8, "--tokens", 4, "--contexts", 3, "--read", 32]
    status, printed, error = run(
        capsys, "steer", storybook_set, "--out", tmp_path, *options, "--prompt", "Mary went to"
    )
    assert status == 0, error
    assert (
        "Mary went to ..." in printed and feature in printed and "\033" not in printed
    )  # no colour where there is no terminal
    assert [line.split("|")[0].strip() for line in printed.splitlines() if " |" in line] == ["unedited", "-4", "1", "8"]
    result = result_of(tmp_path)
    assert list(result) == ["dictionaries", "texts", "dose_response"]
    unedited, _, same, _ = result["texts"]
    assert same["tokens"] == unedited["tokens"] and not any(same["changed"])
    doses = {(dose["method"], dose["strength"]): dose for dose in result["dose_response"]["doses"]}
    assert len(doses) == 9 and doses["features", 1.0]["logit"]["value"] == 0 < doses["features", 8.0]["logit"]["value"]
    page = (tmp_path / "steer.html").read_text()
    assert "plotly-graph-div" in page and feature in page and (tmp_path / "plotly.min.js").is_file()


def test_steer_chooses_a_feature_and_prompts_itself(storybook_set, tmp_path, capsys):
    settings = ["--mode", "off", "--tokens", 3, "--contexts", 2, "--read", 16]
    status, _, error = run(capsys, "steer", storybook_set, "--out", tmp_path, *settings)
    assert status == 0, error
    result = result_of(tmp_path)
    assert len(result["dose_response"]["features"]) == 1 and len(result["texts"]) == 4


def test_a_demo_removes_on_fewer_prompts_when_it_is_quick_and_on_as_many_as_asked():
    quick, usual, asked = (plan_of(DemoSettings(**how)).removal for how in ({"quick": True}, {}, {"prompts": 500}))
    assert quick.test_prompts < usual.test_prompts < asked.test_prompts == 2 * asked.selection_prompts == 500


@pytest.mark.rest
def test_demo_ends_in_one_page_and_keeps_the_dictionaries_it_finds(storybook, storybook_set, tmp_path, capsys):
    sizes = {"eraser_prompts": 16, "shortlist": 16, "max_features": 16, "text_contexts": 8, "random_draws": 1}
    few = RemovalConfig(16, 8, 16, budget=2.0, strengths=(0.5, 1.0), site=Site(5), **sizes)
    patching = IOISettings(prompts=4, corruption="swap", selectors="attribution", baselines="pca", contexts=16)
    folder = shutil.copytree(storybook_set, tmp_path / "dictionaries")
    circuit = CircuitSettings(contexts=60, max_targets=1, null=5, held=0, cards=8)
    with unchecked():
        plan = Plan(patching, circuit, few)
        settings = DemoSettings(contexts=60, quick=True, sites="resid_post", **SHORT_TRAINING)
        assert run_demo(tmp_path, settings, plan, storybook) == 0
    printed = capsys.readouterr().out
    assert "kept" in printed and "step " not in printed
    page = (tmp_path / "index.html").read_text()
    links = ("ioi/ioi.html", "circuit/circuit.html", "remove/remove.html", "steer/steer.html", "prompt/prompt.html")
    for link in (*links, "features/features.html"):
        assert f'href="{link}"' in page and (tmp_path / link).exists()
    assert "plotly-graph-div" in page and "subrank train" in page
    assert len(re.sub(r"<[^>]*>", " ", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)).split()) < 900
    assert [path.parent for path in tmp_path.rglob("plotly.min.js")] == [tmp_path]
    # dictionaries of other settings are neither passed off as these nor deleted
    config = TrainConfig(**SHORT_TRAINING)
    text = Text("storybook", 128, bos_of(storybook, None), max_tokens=config.tokens)
    requested = Run("storybook", text, ("resid_post",), (config,))
    assert prepare_demo(folder, storybook, requested) is False
    others = (
        replace(requested, members=(replace(config, seed=1),)),
        replace(requested, sites=("resid_post.4",)),
    )
    for other in others:
        with pytest.raises(UserError, match="other settings"):
            prepare_demo(folder, storybook, other)
    assert (folder / "set.json").exists()
