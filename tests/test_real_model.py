"""The verbs on a pretrained model that is not ours; skipped where its files are absent."""

import json
from pathlib import Path

import pytest
from planted import unchecked

from sae_core.sites import Site
from sae_core.storage import load_set
from subrank.cli import command

SHARED = Path(__file__).resolve().parents[2] / "shared"
MODEL, TEXT = SHARED / "models" / "stories260k", SHARED / "data" / "tinystories.jsonl"

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (MODEL.is_dir() and TEXT.is_file()), reason=f"needs {MODEL.name} and {TEXT.name} in ../shared"
    ),
]


def run(arguments: list[str]) -> int:
    with unchecked():  # the parts of every verb have their shapes checked in tests of their own
        return command.main(arguments)


@pytest.fixture(scope="module")
def stories(training_seed, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stories")
    options = ["--sites", "resid_post.3", "resid_post.4", "--tokens", "30000", "--batch", "512"]
    options += ["--seed", str(training_seed)]
    assert run(["train", str(MODEL), "--text", str(TEXT), "--out", str(folder), *options]) == 0
    return folder


def test_dictionaries_of_a_real_model_explain_most_of_it(stories):
    assert set(load_set(stories).dictionaries) == {Site(3), Site(4)}
    quality = json.loads((stories / "result.json").read_text())["dictionaries"]
    assert all(row["fvu"] < 0.5 and row["loss_recovered"] > 0.7 for row in quality.values())


def test_its_circuit_is_found_and_drawn(stories, tmp_path):
    light = ["--max-targets", "1", "--contexts", "150", "--held", "0", "--cards", "8", "--null", "5"]
    assert run(["circuit", str(stories), "--out", str(tmp_path), *light]) == 0
    graph = json.loads((tmp_path / "circuit.json").read_text())
    causes = [edge["cause"] for edge in graph["edges"]]
    assert graph["target"].startswith("4_") and any(cause.startswith("3_") for cause in causes), causes
    assert (tmp_path / "circuit.svg").is_file()


def test_the_circuit_of_she_against_he(stories, tmp_path):
    """On places of the text that was not searched; two layers, held against random circuits of equal density."""
    options = ["--target", "logit: she - he", "--nodes", "20", "--cover", "1", "--contexts", "100", "--held", "60"]
    options += ["--null", "0", "--cards", "0", "--draws", "0"]
    assert run(["circuit", str(stories), "--out", str(tmp_path), *options]) == 0
    judgement = json.loads((tmp_path / "result.json").read_text())["judgement"]
    score, controls = judgement["scores"][0], judgement["controls"][0]
    assert score["m_whole"] > 2 > score["m_nothing"], (
        "the model says she after a named girl, and not without its features"
    )
    drawn = max(control["ablated"]["value"] for control in controls["random"])
    assert controls["circuit"]["ablated"]["value"] > drawn + 0.1


def test_pronouns_are_measured_with_names_of_several_tokens(stories, tmp_path):
    options = ["--site", "resid_post.4", "--prompts", "64"]
    assert run(["remove", str(stories), "--out", str(tmp_path), *options]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert next(iter(result)) == "own_score" and result["removal"]["own_auroc"] > 0.7


def test_ioi_says_that_the_model_does_not_do_it(stories, tmp_path, capsys):
    options = ["--site", "resid_post.4", "--prompts", "24"]
    assert run(["ioi", str(stories), "--out", str(tmp_path), *options]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["own_score"].keys() == {"io", "swap"} and result["ioi"][0]["shared"] == ["names"]
    assert all(score["top1"] < 0.5 for score in result["own_score"].values())
    assert capsys.readouterr().out.count("the model itself does not do this task") == 2
