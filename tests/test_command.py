"""The command: every verb on its smallest settings, and every mistake answered in one line."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import subrank
import verbs.train
from sae_core.errors import UserError
from sae_core.models import load_model
from sae_core.runs import Run
from sae_core.storage import load_set, sets_in
from sae_core.text import Text
from sae_core.training import TrainConfig
from verbs.demo import prepare_demo

VERBS = ("demo", "train", "import", "evaluate", "ioi", "circuit", "remove", "steer")
TRAIN = ["--tokens", "40000", "--batch", "512", "--context", "64"]


@pytest.fixture(scope="session")
def small_set(tmp_path_factory) -> Path:
    """Dictionaries for every layer of storybook, barely trained."""
    folder = tmp_path_factory.mktemp("set")
    assert subrank.main(["train", "storybook", "--out", str(folder), *TRAIN]) == 0
    return folder


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = subrank.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def result_of(folder: Path) -> dict:
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["model"] and provenance["fingerprint"] and provenance["packages"]["torch"] == torch.__version__
    return json.loads((folder / "result.json").read_text())


# ---- help ------------------------------------------------------------------------------------------


def test_help_answers_in_under_a_second_without_heavy_imports():
    code = (
        "import sys, subrank\ntry: subrank.main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'sae_core'} & {*sys.modules}"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 1.0
    assert all(verb in done.stdout for verb in VERBS)


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stop:
        subrank.main(["--version"])
    text = (Path(subrank.__file__).parent / "pyproject.toml").read_text()
    assert stop.value.code == 0 and f'version = "{capsys.readouterr().out.split()[1]}"' in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_the_common_options(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        subrank.main([verb, "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and all(option in said for option in ("--seed", "--device", "--out"))


# ---- the verbs -------------------------------------------------------------------------------------


def test_train_writes_a_set_that_states_its_quality(small_set):
    found = load_set(small_set)
    assert [str(site) for site in found.dictionaries] == [f"resid_post.{layer}" for layer in range(6)]
    quality = result_of(small_set)["dictionaries"]
    assert quality.keys() == {str(site) for site in found.dictionaries}
    assert all(0 < row["fvu"] < 1 and row["l0"] <= 16 and row["loss_recovered"] <= 1 for row in quality.values())
    assert not (small_set / "checkpoint").exists()


def test_ioi_states_the_models_own_score_first(small_set, tmp_path, capsys):
    status, said, _ = run(capsys, "ioi", small_set, "--out", tmp_path, "--prompts", 12, "--corruption", "swap")
    assert status == 0
    own = next(line for line in said.splitlines() if "swap:" in line)
    assert "the model itself does this task" in own
    result = result_of(tmp_path)
    assert list(result) == ["own_score", "dictionaries", "labels", "ioi"]
    curves = {curve["name"]: curve["points"] for curve in result["ioi"][0]["curves"]}
    assert curves.keys() == {"dictionary", "PCA", "non-negative PCA", "neurons", "random basis"}
    chosen = [curve["selection"] for curve in result["ioi"][0]["curves"] if curve["name"] == "dictionary"]
    assert chosen == ["greedy", "attribution", "threshold", "random"]
    assert "dictionary leaves less KL than PCA" in result["ioi"][0]["sentences"][0]
    assert curves["PCA"][-1]["kl"] < 1e-4 < curves["PCA"][0]["kl"] and curves["PCA"][-1]["recovered"] > 0.999
    assert "plotly.min.js" in (tmp_path / "ioi.html").read_text() and (tmp_path / "plotly.min.js").is_file()


def test_circuit_is_written_as_json_dot_svg_and_png(small_set, tmp_path, capsys):
    target = f"5_{_most_active(small_set)}"
    options = ["--target", target, "--contexts", 400, "--max-targets", 2, "--examples", 16]
    status, _, said = run(capsys, "circuit", small_set, "--out", tmp_path, *options)
    assert status == 0, said
    graph = json.loads((tmp_path / "circuit.json").read_text())
    assert graph["target"] == target and graph["edges"] and graph["facts"]["targets_asked"] == 2
    assert "digraph" in (tmp_path / "circuit.dot").read_text()
    assert "<svg" in (tmp_path / "circuit.svg").read_text()
    assert (tmp_path / "circuit.png").read_bytes().startswith(b"\x89PNG")


def _most_active(folder: Path) -> int:
    model, found = load_model("storybook"), load_set(folder)
    site = max(found.dictionaries, key=lambda s: s.layer)
    contexts = found.text.contexts(model)[:40]
    codes = found.dictionaries[site].encode(model.record(contexts, [site])[site])[model.content(contexts)]
    return int((codes > 0).sum(0).argmax())


def test_remove_reports_every_method_on_the_same_site(small_set, tmp_path, capsys):
    status, said, _ = run(capsys, "remove", small_set, "--out", tmp_path, "--site", "resid_post.5", "--prompts", 48)
    assert status == 0 and "the model itself does this task" in said
    removal = result_of(tmp_path)["removal"]
    methods = {method["method"]: method for method in removal["methods"]}
    assert {"features", "LEACE", "mean difference", "random features"} <= methods.keys()
    assert {method["site"] for method in removal["methods"]} == {"resid_post.5"}
    assert methods["random features"]["edit_size"] == pytest.approx(methods["features"]["edit_size"], rel=0.02)
    assert removal["own_auroc"] > 0.99 and removal["sentence"] in said


def test_steer_shows_texts_side_by_side(small_set, tmp_path, capsys):
    feature = f"5_{_most_active(small_set)}"
    asked = ["--feature", feature, "--strengths", -4, 1, 8, "--tokens", 8, "--contexts", 4]
    status, said, error = run(capsys, "steer", small_set, "--out", tmp_path, *asked, "--prompt", "Mary went to")
    assert status == 0, error
    assert "Mary went to ..." in said and feature in said and "\033" not in said  # no colour where there is no terminal
    assert [line.split("|")[0].strip() for line in said.splitlines() if " |" in line] == ["unedited", "-4", "1", "8"]
    result = result_of(tmp_path)
    assert list(result) == ["dictionaries", "texts", "dose_response"]
    unedited, _, same, _ = result["texts"]
    assert same["tokens"] == unedited["tokens"] and not any(same["changed"])
    doses = {(dose["method"], dose["strength"]): dose for dose in result["dose_response"]["doses"]}
    assert len(doses) == 9 and doses["features", 1.0]["logit"]["mean"] == 0 < doses["features", 8.0]["logit"]["mean"]
    page = (tmp_path / "steer.html").read_text()
    assert "plotly-graph-div" in page and feature in page and (tmp_path / "plotly.min.js").is_file()


def test_steer_chooses_a_feature_and_prompts_itself(small_set, tmp_path, capsys):
    settings = ["--mode", "off", "--tokens", 3, "--contexts", 2]
    status, said, error = run(capsys, "steer", small_set, "--out", tmp_path, *settings)
    assert status == 0, error
    result = result_of(tmp_path)
    assert result["dose_response"]["features"][0].startswith("5_") and len(result["texts"]) == 4
    assert "choosing a feature" in said


def test_demo_ends_in_one_page_and_runs_again_on_what_it_has(tmp_path, capsys):
    options = ["--out", tmp_path, "--tokens", 60_000, "--prompts", 8, "--contexts", 400, "--max-targets", 1]
    status, said, error = run(capsys, "demo", *options)
    assert status == 0, error
    page = (tmp_path / "index.html").read_text()
    for link in ("dictionaries/", "ioi/ioi.html", "circuit/circuit.html", "remove/remove.html"):
        assert f'href="{link}"' in page and (tmp_path / link).exists()
    assert page.count("plotly-graph-div") == 5 and "<svg" in page and "subrank train" in page
    assert [path.parent for path in tmp_path.rglob("plotly.min.js")] == [tmp_path]
    assert "kept" not in said
    model, text = load_model("storybook"), Text("storybook", 128, True, max_tokens=60_000)
    folder = tmp_path / "dictionaries"
    asked = Run("storybook", text, ("resid_post",), (TrainConfig(tokens=60_000),))
    assert prepare_demo(folder, model, asked) is False
    assert (folder / "set.json").exists()
    with pytest.raises(UserError, match="other settings"):  # neither passed off as this one nor deleted
        prepare_demo(folder, model, replace(asked, members=(TrainConfig(tokens=60_000, seed=1),)))
    assert (folder / "set.json").exists()


def test_an_interrupted_training_resumes_to_the_same_numbers(tmp_path, capsys, monkeypatch):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    options = ["--sites", "resid_post.0", "mlp_out.2", "--tokens", 8192, "--batch", 512, "--context", 64]
    assert run(capsys, "train", "storybook", "--out", whole, *options)[0] == 0

    real = verbs.train.progress

    def interrupted(steps, total, done):
        for step in real(steps, total, done):
            if step.step == 7:
                import signal

                signal.raise_signal(signal.SIGINT)
            yield step

    monkeypatch.setattr(verbs.train, "progress", interrupted)
    status, said, _ = run(capsys, "train", "storybook", "--out", halves, *options)
    assert status == 130 and "--resume" in said.splitlines()[-1]
    assert not (halves / "set.json").exists()
    monkeypatch.setattr(verbs.train, "progress", real)
    assert run(capsys, "train", "storybook", "--out", halves, "--resume")[0] == 0
    one, other = load_set(whole), load_set(halves)
    for site, sae in one.dictionaries.items():
        for name, tensor in sae.state_dict().items():
            assert torch.equal(tensor, other.dictionaries[site].state_dict()[name])
    assert result_of(whole) == result_of(halves)


def test_a_resumed_run_must_be_the_same_run(tmp_path, capsys, monkeypatch):
    options = ["--sites", "resid_post.0", "--tokens", 8192, "--batch", 512, "--context", 64]
    monkeypatch.setattr(verbs.train, "interruptible", lambda: nullcontext(lambda: True))
    assert run(capsys, "train", "storybook", "--out", tmp_path, *options)[0] == 130
    monkeypatch.undo()
    assert "other members" in one_line(capsys, "train", "storybook", "--out", tmp_path, *options, "-k", 8, "--resume")
    assert run(capsys, "train", "storybook", "--out", tmp_path, *options, "--resume")[0] == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_a_sweep_a_config_file_and_a_cache(tmp_path, capsys):
    """One pass over the model trains all members; its run.json, with the activations kept, gives the same again."""
    sweep, again, kept = tmp_path / "sweep", tmp_path / "again", tmp_path / "kept"
    options = ["--tokens", 20480, "--batch", 512, "--context", 64, "--sites", "resid_post.1", "attn_out.2"]
    kinds = ["--kind", "topk", "batchtopk", "tied", "-k", 4, 8, "--cache", kept]
    assert run(capsys, "train", "storybook", "--out", sweep, *options, *kinds)[0] == 0
    names = [path.name for path in sets_in(sweep)]
    expected = ["batchtopk-n512-k4", "batchtopk-n512-k8", "tied-n512-l12", "topk-n512-k4", "topk-n512-k8"]
    assert names == [f"{name}-seed0" for name in expected]
    assert {*result_of(sweep)["dictionaries"]} == {*names} and (kept / "block-00000.safetensors").exists()
    thresholds = result_of(sweep)["thresholds"]
    assert thresholds["batchtopk-n512-k4-seed0/attn_out.2"].keys() == {"running", "calibrated"}
    rows = [json.loads(line) for line in (sweep / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 5 * 2 and {row["member"] for row in rows} == {*names} and all(row["fvu"] > 0 for row in rows)
    assert run(capsys, "train", "--config", sweep / "run.json", "--out", again, "--cache", kept)[0] == 0
    for name in names:
        for site in ("resid_post.1", "attn_out.2"):
            file = f"{name}/{site}/sae_weights.safetensors"
            assert (sweep / file).read_bytes() == (again / file).read_bytes()
    assert "holds a sweep" in one_line(capsys, "circuit", sweep)
    assert "already" in one_line(capsys, "train", "storybook", "--out", sweep)
    assert "leave out" in one_line(capsys, "train", "--config", sweep / "run.json", "-k", 3, "--out", tmp_path / "o")
    assert "other" in one_line(capsys, "train", "storybook", "--cache", kept, "--out", tmp_path / "o", "--tokens", 9000)
    status, said, error = run(capsys, "evaluate", sweep, "--contexts", 12, "--spliced", 4, "--out", tmp_path / "e")
    assert status == 0, error
    assert all(name in said for name in names) and (tmp_path / "e" / "evaluate.html").exists()


def test_training_on_kl(tmp_path, capsys):
    options = ["--tokens", 4096, "--batch", 512, "--context", 64, "--sites", "mlp_out.4", "--kl", 0.5]
    status, _, error = run(capsys, "train", "storybook", "--out", tmp_path / "a", *options)
    assert status == 0, error
    assert load_set(tmp_path / "a").training.kl == 0.5
    assert "--cache" in one_line(capsys, "train", "storybook", "--out", tmp_path / "b", *options, "--cache", tmp_path)


# ---- mistakes --------------------------------------------------------------------------------------


def one_line(capsys, *arguments: str) -> str:
    status, _, error = run(capsys, *arguments)
    assert status == 2 and len(error.strip().splitlines()) == 1 and error.startswith("subrank: ")
    return error


def test_a_missing_model_or_text(tmp_path, capsys):
    assert "no model directory" in one_line(capsys, "train", tmp_path / "none", "--out", tmp_path / "o")
    missing = tmp_path / "none.jsonl"
    assert str(missing) in one_line(capsys, "train", "storybook", "--text", missing, "--out", tmp_path / "o")
    (tmp_path / "empty").mkdir()
    assert "config.json" in one_line(capsys, "train", tmp_path / "empty", "--out", tmp_path / "o")


def test_a_hub_that_does_not_answer(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sae_core.models.hub_answers", lambda *a, **k: False)
    started = time.perf_counter()
    assert "hub does not answer" in one_line(capsys, "train", "nobody/nothing", "--out", tmp_path)
    assert "hub does not answer" in one_line(capsys, "train", "storybook", "--text", "nobody/text", "--out", tmp_path)
    assert time.perf_counter() - started < 10


def test_the_hub_is_asked_from_a_fresh_interpreter(tmp_path):
    """It used to fail there: huggingface_hub loads its parts only when somebody imports them."""
    call = [sys.executable, "-m", "subrank", "train", "nobody/nothing", "--out", str(tmp_path)]
    unreachable = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(call, capture_output=True, text=True, env=unreachable, cwd=Path(subrank.__file__).parent)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "hub does not answer" in done.stderr


def test_a_text_that_is_too_short(tmp_path, capsys):
    (tmp_path / "short.txt").write_text("Mary went home.")
    error = one_line(capsys, "train", "storybook", "--text", tmp_path / "short.txt", "--out", tmp_path / "o")
    assert "fewer than one context" in error


@pytest.mark.parametrize("verb", ["evaluate", "ioi", "circuit", "remove", "steer"])
def test_a_folder_that_holds_no_dictionaries(verb, tmp_path, capsys):
    assert "no dictionaries" in one_line(capsys, verb, tmp_path)
    assert "no folder" in one_line(capsys, verb, tmp_path / "none")


def test_a_set_made_for_another_model(small_set, tmp_path, capsys):
    from tiny import write_tiny

    other = write_tiny(tmp_path / "neox", "neox")
    error = one_line(capsys, "ioi", small_set, "--model", other or tmp_path / "neox", "--out", tmp_path / "o")
    assert "width" in error or "another model" in error or "layers run" in error


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("5_99999", "out of range"),
        ("nonsense", "no feature"),
        ("0_1", "below it"),
        ("mlp_out.5_1", "no dictionary"),
    ],
)
def test_a_target_that_is_not_there(small_set, tmp_path, capsys, target, complaint):
    assert complaint in one_line(capsys, "circuit", small_set, "--target", target, "--out", tmp_path)


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["--feature", "5_99999"], "has 512"),
        (["--feature", "nonsense"], "no feature"),
        (["--prompt", " "], "empty"),
        (["--prompt", "Mary " * 250], "do not fit"),
        (["--strengths", "strong"], "must be numbers"),
        (["--strengths", "nan"], "finite"),
        (["--mode", "off", "--strengths", "1"], "no strengths"),
    ],
)
def test_steering_that_makes_no_sense(small_set, tmp_path, capsys, asked, complaint):
    assert complaint in one_line(capsys, "steer", small_set, "--out", tmp_path, *asked)


def test_damaged_weights(small_set, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(small_set, broken)
    weights = broken / "resid_post.2" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "damaged" in one_line(capsys, "ioi", broken)


def test_an_out_that_cannot_be_written_is_found_before_work_starts(small_set, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("sae_core.models.load_model", lambda *a, **k: pytest.fail("the model was loaded first"))
    for verb in (["train", "storybook"], ["ioi", small_set], ["demo"]):
        assert "cannot be written" in one_line(capsys, *verb, "--out", tmp_path / "file" / "out")


def test_training_never_overwrites_a_set(small_set, capsys):
    before = (small_set / "set.json").read_bytes()
    assert "--resume" in one_line(capsys, "train", "storybook", "--out", small_set)
    assert (small_set / "set.json").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        ["--sites", "resid_post.9"],
        ["--sites", "nowhere"],
        ["-k", "0"],
        ["--tokens", "10"],
        ["--lr", "-1"],
        ["--context", "9999"],
        ["--device", "abacus"],
        ["--resume"],
    ],
)
def test_settings_that_make_no_sense(options, tmp_path, capsys):
    one_line(capsys, "train", "storybook", "--out", tmp_path, *options)
