"""The command: every verb on its smallest settings, and every mistake answered in one line."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from planted import unchecked

import subrank.cli.train
from circuits.discovery.target_causes import CauseSearch
from circuits.schema import faults
from editing.removal.experiment import RemovalConfig
from sae_core.data.text import Text
from sae_core.errors import UserError
from sae_core.model.language_model import load_model
from sae_core.sites import Site
from sae_core.storage import load_set, sets_in
from sae_core.training.config import TrainConfig
from sae_core.training.run import Run
from subrank.cli import command
from subrank.cli.circuit import After
from subrank.cli.demo import prepare_demo
from subrank.cli.terminal import progress

ROOT = Path(__file__).resolve().parents[3]
VERBS = ("demo", "train", "import", "evaluate", "ioi", "circuit", "features", "remove", "steer")
TRAIN = ["--tokens", "24000", "--batch", "256", "--context", "64"]


@pytest.fixture(scope="session")
def small_set(tmp_path_factory) -> Path:
    """Dictionaries for every layer of storybook, barely trained."""
    folder = tmp_path_factory.mktemp("set")
    with unchecked():
        assert command.main(["train", "storybook", "--out", str(folder), *TRAIN]) == 0
    return folder


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """A whole verb; every part of it has its shapes checked in tests of its own."""
    with unchecked():
        status = command.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def result_of(folder: Path) -> dict:
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["model"] and provenance["fingerprint"] and provenance["packages"]["torch"] == torch.__version__
    return json.loads((folder / "result.json").read_text())


# ---- help ------------------------------------------------------------------------------------------


def test_help_answers_in_under_a_second_without_heavy_imports():
    code = (
        "import sys\nfrom subrank.cli import command\ntry: command.main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'sae_core'} & {*sys.modules}"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 1.0
    assert all(verb in done.stdout for verb in VERBS)


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--version"])
    text = (ROOT / "pyproject.toml").read_text()
    assert stop.value.code == 0 and f'version = "{capsys.readouterr().out.split()[1]}"' in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_the_common_options(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([verb, "--help"])
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
    assert all(name in result["ioi"][0]["sentences"][0] for name in ("dictionary", "PCA"))
    assert curves["PCA"][-1]["kl"] < 1e-4 < curves["PCA"][0]["kl"] and curves["PCA"][-1]["recovered"] > 0.999
    assert "plotly.min.js" in (tmp_path / "ioi.html").read_text() and (tmp_path / "plotly.min.js").is_file()


def test_circuit_is_written_as_json_dot_svg_and_png(small_set, tmp_path, capsys):
    target = f"5_{_most_active(small_set)}"
    options = ["--target", target, "--contexts", 60, "--max-targets", 2, "--examples", 16, "--null", 20]
    options += ["--held", 24, "--cards", 16, "--draws", 2, "--cover", 1]
    status, printed, said = run(capsys, "circuit", small_set, "--out", tmp_path, *options)
    assert status == 0, said
    result = json.loads((tmp_path / "result.json").read_text())
    assert {"reached", "scores", "controls", "curves", "stability", "moves"} == result["judgement"].keys()
    assert len(result["judgement"]["scores"]) == 2 and "faithfulness" in printed + said
    assert (tmp_path / "explore" / "index.html").is_file() and not (tmp_path / "steps.jsonl").exists()
    assert json.loads((tmp_path / "node_link.json").read_text())["nodes"]
    assert not list(faults(json.loads((tmp_path / "neuronpedia" / "graph.json").read_text())))
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


def test_demo_ends_in_one_page_and_runs_again_on_what_it_has(tmp_path, capsys, monkeypatch):
    few = RemovalConfig(8, 8, 8, shortlist=6, max_features=4, text_contexts=16, random_draws=1, strengths=(0.0, 1.0))
    monkeypatch.setattr("subrank.cli.demo.After", lambda **_: After(n_held=40, n_draws=0, n_cards=16, cover=1))
    monkeypatch.setattr("subrank.cli.demo.removal_config", lambda *_: few)
    options = ["--out", tmp_path, "--tokens", 30_000, "--prompts", 8, "--contexts", 100, "--max-targets", 1]
    options += ["--sites", "resid_post.4", "resid_post.5"]
    status, said, error = run(capsys, "demo", *options)
    assert status == 0, error
    page = (tmp_path / "index.html").read_text()
    for link in ("dictionaries/", "ioi/ioi.html", "circuit/circuit.html", "remove/remove.html"):
        assert f'href="{link}"' in page and (tmp_path / link).exists()
    assert page.count("plotly-graph-div") == 5 and "<svg" in page and "subrank train" in page
    assert [path.parent for path in tmp_path.rglob("plotly.min.js")] == [tmp_path]
    assert "asked for: kept" not in said
    model, text = load_model("storybook"), Text("storybook", 128, True, max_tokens=30_000)
    folder = tmp_path / "dictionaries"
    asked = Run("storybook", text, ("resid_post.4", "resid_post.5"), (TrainConfig(tokens=30_000),))
    assert prepare_demo(folder, model, asked) is False
    assert (folder / "set.json").exists()
    with pytest.raises(UserError, match="other settings"):  # neither passed off as this one nor deleted
        prepare_demo(folder, model, replace(asked, members=(TrainConfig(tokens=30_000, seed=1),)))
    with pytest.raises(UserError, match="other settings"):
        prepare_demo(folder, model, replace(asked, sites=("resid_post",)))
    assert (folder / "set.json").exists()


def test_an_interrupted_training_resumes_to_the_same_numbers(tmp_path, capsys, monkeypatch):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    options = ["--sites", "resid_post.0", "mlp_out.2", "--tokens", 8192, "--batch", 512, "--context", 64]
    assert run(capsys, "train", "storybook", "--out", whole, *options)[0] == 0

    real = subrank.cli.train.progress

    def interrupted(steps, total, done):
        for step in real(steps, total, done):
            if step.step == 7:
                import signal

                signal.raise_signal(signal.SIGINT)
            yield step

    monkeypatch.setattr(subrank.cli.train, "progress", interrupted)
    status, said, _ = run(capsys, "train", "storybook", "--out", halves, *options)
    assert status == 130 and "--resume" in said.splitlines()[-1]
    assert not (halves / "set.json").exists()
    monkeypatch.setattr(subrank.cli.train, "progress", real)
    assert run(capsys, "train", "storybook", "--out", halves, "--resume")[0] == 0
    one, other = load_set(whole), load_set(halves)
    for site, sae in one.dictionaries.items():
        for name, tensor in sae.state_dict().items():
            assert torch.equal(tensor, other.dictionaries[site].state_dict()[name])
    assert result_of(whole) == result_of(halves)


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> tuple[Path, Path]:
    """A run of one step of sixteen with -k 8 on a text file, and that file. Tests leave both as they are."""
    folder = tmp_path_factory.mktemp("begun")
    out, text = folder / "out", folder / "words.txt"
    text.write_text("Anna gave the book to Ben. He read it at home.\n" * 900)
    options = ["--sites", "resid_post.0", "--tokens", 8192, "--batch", 512, "--context", 64, "-k", 8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subrank.cli.train, "interruptible", lambda: nullcontext(lambda: True))
        asked = ["train", "storybook", "--out", out, "--text", text, *options]
        assert command.main([str(argument) for argument in asked]) == 130
    return out, text


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["-k", 16], "begun with -k 8, not -k 16;"),  # the default: it used to pass for not given
        (["-k", 8, "--batch", 256], "begun with --batch 512, not --batch 256;"),
        (["-k", 8, 4], "not -k 8 4;"),
        (["--tokens", 8192, "--seed", 1, "--lr", 0.1], "begun with --lr None, --seed 0, not --lr 0.1, --seed 1;"),
        (["--text", "storybook"], "words.txt, not --text storybook;"),
        (["--no-prepend-bos"], "begun with --prepend-bos True, not --prepend-bos False;"),
        (["--sites", "resid_post"], "begun with --sites resid_post.0, not --sites resid_post.0 resid_post.1"),
        (["--kind", "relu"], "begun with --kind topk, not --kind relu;"),
        (["--memory", 1], "begun with --memory 2.0, not --memory 1.0;"),
        (["--memory", "nan"], "--memory must be positive"),
    ],
)
def test_a_resumed_run_must_be_the_run_that_was_begun(begun, capsys, asked, complaint):
    assert complaint in one_line(capsys, "train", "storybook", "--out", begun[0], *asked, "--resume")


def test_a_resumed_run_can_be_named_again_or_by_its_config(begun, tmp_path, capsys):
    """Of a run in a file, too, it is told what differs; half a line in the log is no obstacle."""
    out, text = shutil.copytree(begun[0], tmp_path / "out"), begun[1]
    other = json.loads((out / "run.json").read_text())
    other["members"][0]["recipe"]["k"], other["memory"] = 16, 10**9
    (tmp_path / "other.json").write_text(json.dumps(other))
    resume = ["train", "--out", out, "--resume"]
    error = one_line(capsys, *resume, "--config", tmp_path / "other.json")
    assert "other members and memory than" in error and "other.json" in error
    assert "leave out -k" in one_line(capsys, *resume, "--config", out / "run.json", "-k", 8)
    before = text.read_text()
    text.write_text(before.replace("Ben", "Tom", 1))
    try:
        assert "holds another text" in one_line(capsys, *resume)
    finally:
        text.write_text(before)
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 1, "tokens": 512, "member": "topk-n5')
    again = ["--text", text, "-k", 8, "--sites", "resid_post.0", "--seeds", 0]
    assert run(capsys, *resume, *again)[0] == 0
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [16]  # the last one is always there
    assert load_set(out).training.recipe.k == 8


def test_a_resumed_run_keeps_its_precision_and_says_so(begun, tmp_path, capsys, monkeypatch):
    from sae_core.dictionaries import sparse
    from sae_core.training.checkpoint import read_checkpoint

    out = shutil.copytree(begun[0], tmp_path / "out")
    (in_bfloat16,) = read_checkpoint(out)["bfloat16"]
    monkeypatch.setattr(sparse, "multiplies_bfloat16", lambda device: not in_bfloat16)
    status, said, error = run(capsys, "train", "--out", out, "--resume")
    assert status == 0, error
    assert f"goes on in {'bfloat16' if in_bfloat16 else 'float32'}, in which it began" in said


def test_a_sweep_a_config_file_and_a_cache(tmp_path, capsys):
    """One pass over the model trains all members; its run.json, with the activations kept, gives the same again."""
    sweep, again, kept = tmp_path / "sweep", tmp_path / "again", tmp_path / "kept"
    options = ["--tokens", 16_000, "--batch", 256, "--context", 32, "--sites", "resid_post.1", "attn_out.2"]
    kinds = ["--kind", "batchtopk", "tied", "-k", 8, "--cache", kept]
    status, said, error = run(capsys, "train", "storybook", "--out", sweep, *options, *kinds)
    assert status == 0 and f"{kept} takes about" in said, error
    names = [path.name for path in sets_in(sweep)]
    assert names == ["batchtopk-n512-k8-seed0", "tied-n512-l12-seed0"]
    measured = result_of(sweep)["dictionaries"]
    assert {*measured} == {*names} and (kept / "block-00000.safetensors").exists()
    found = [row["l0"] for row in measured[names[0]].values()]  # of what is saved, on text that was held out
    assert found == pytest.approx([8, 8], rel=0.1)
    thresholds = result_of(sweep)["thresholds"]
    assert thresholds["batchtopk-n512-k8-seed0/attn_out.2"].keys() == {"running", "calibrated"}
    rows = [json.loads(line) for line in (sweep / "log.jsonl").read_text().splitlines()]
    assert (
        [row["step"] for row in rows] == 4 * [32] + 4 * [62]
        and {row["member"] for row in rows} == {*names}
        and all(row["fvu"] > 0 for row in rows)
    )
    assert run(capsys, "train", "--config", sweep / "run.json", "--out", again, "--cache", kept)[0] == 0
    for name in names:
        for site in ("resid_post.1", "attn_out.2"):
            file = f"{name}/{site}/sae_weights.safetensors"
            assert (sweep / file).read_bytes() == (again / file).read_bytes()
    assert "holds a sweep" in one_line(capsys, "circuit", sweep)
    assert "already" in one_line(capsys, "train", "storybook", "--out", sweep)
    assert "leave out" in one_line(capsys, "train", "--config", sweep / "run.json", "-k", 3, "--out", tmp_path / "o")
    assert "other" in one_line(capsys, "train", "storybook", "--cache", kept, "--out", tmp_path / "o", "--tokens", 9000)
    status, said, error = run(capsys, "evaluate", sweep, "--contexts", 6, "--spliced", 2, "--out", tmp_path / "e")
    assert status == 0, error
    assert all(name in said for name in names) and (tmp_path / "e" / "evaluate.html").exists()


def test_a_sweep_over_sizes_penalties_and_seeds(tmp_path, capsys):
    """Members are all combinations, and share the order of the text, which is that of the first seed."""
    options = ["--tokens", 1024, "--batch", 256, "--context", 32, "--sites", "resid_post.1"]
    sizes = ["--kind", "topk", "relu", "-k", 4, "--expansion", 1, 2, "--l1", 0.5, 1, "--seeds", 1, 0]
    status, _, error = run(capsys, "train", "storybook", "--out", tmp_path, *options, *sizes)
    assert status == 0, error
    kinds = [
        f"{kind}-n{n}-{own}" for kind, own in (("relu", "l10.5"), ("relu", "l11"), ("topk", "k4")) for n in (128, 256)
    ]
    assert {path.name for path in sets_in(tmp_path)} == {f"{kind}-seed{seed}" for kind in kinds for seed in (0, 1)}
    for folder in sets_in(tmp_path):
        found = load_set(folder)
        assert found.stream_seed == 1 and found.training.seed == int(folder.name[-1])
        assert found.dictionaries[Site(1)].n_latents == int(folder.name.split("-n")[1].split("-")[0])


def test_a_full_disk_ends_training_in_one_line(tmp_path, capsys):
    """Simulated by a limit on the size of files that weights do not keep to; nothing half-written stays."""
    options = ["--tokens", 1024, "--batch", 256, "--context", 32, "--sites", "resid_post.1"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for folder, more in (("set", []), ("checkpoint", ["--save-every", 0])):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            error = one_line(capsys, "train", "storybook", "--out", tmp_path / folder, *options, *more)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "could not be written" in error and ".safetensors" in error
        assert {path.name for path in (tmp_path / folder).rglob("*") if path.is_file()} == {"run.json", "log.jsonl"}


@dataclass(frozen=True)
class Told:
    """A step of training as `progress` reads it."""

    step: int

    def numbers(self) -> list[dict]:
        return [{Site(i): {"fvu": 1 / self.step, "l0": 8.0, "dead": i} for i in range(3)}] * 2


def test_progress_is_a_line_per_tenth_or_a_bar(capsys, monkeypatch):
    steps = [Told(number) for number in range(21, 41)]
    assert list(progress(iter(steps), 40, 20)) == steps
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"  step {n}/40: FVU {1 / n:.3f}, L0 8.0, dead 6" for n in (24, 28, 32, 36, 40)]

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress(iter(steps), 40, 20)) == steps
    shown = sys.stderr.getvalue()
    assert "40/40" in shown and f"FVU {1 / 32:.3f}, L0 8.0, dead 6" in shown
    assert not capsys.readouterr().out


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
    monkeypatch.setattr("sae_core.model.hub.hub_answers", lambda *a, **k: False)
    started = time.perf_counter()
    assert "hub does not answer" in one_line(capsys, "train", "nobody/nothing", "--out", tmp_path)
    assert "hub does not answer" in one_line(capsys, "train", "storybook", "--text", "nobody/text", "--out", tmp_path)
    assert time.perf_counter() - started < 10


def test_the_hub_is_asked_from_a_fresh_interpreter(tmp_path):
    """It used to fail there: huggingface_hub loads its parts only when somebody imports them."""
    call = [sys.executable, "-m", "subrank", "train", "nobody/nothing", "--out", str(tmp_path)]
    unreachable = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(call, capture_output=True, text=True, env=unreachable, cwd=ROOT)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "hub does not answer" in done.stderr


def test_a_text_that_is_too_short(tmp_path, capsys):
    (tmp_path / "short.txt").write_text("Mary went home.")
    error = one_line(capsys, "train", "storybook", "--text", tmp_path / "short.txt", "--out", tmp_path / "o")
    assert "fewer than one context" in error


def test_an_interrupted_search_goes_on_where_it_was(small_set, tmp_path, capsys, monkeypatch):
    """The second run takes the first step over, and ends with the same circuit as one that was never stopped."""
    target = f"5_{_most_active(small_set)}"
    options = ["--target", target, "--contexts", 50, "--max-targets", 2, "--null", 5, "--held", 0, "--cards", 0]
    assert run(capsys, "circuit", small_set, "--out", tmp_path / "whole", *options)[0] == 0
    causes_of, searched = CauseSearch.causes_of, []

    def failing(self, target, *rest, **how):
        searched.append(target.node)
        if len(searched) == 2:
            raise UserError("the lights went out")
        return causes_of(self, target, *rest, **how)

    monkeypatch.setattr(CauseSearch, "causes_of", failing)
    assert run(capsys, "circuit", small_set, "--out", tmp_path / "halves", *options)[0] == 2
    assert len((tmp_path / "halves" / "steps.jsonl").read_text().splitlines()) == 2
    searched.append(None)  # from here on nothing fails
    assert run(capsys, "circuit", small_set, "--out", tmp_path / "halves", *options)[0] == 0
    assert searched.count(searched[0]) == 1, "the first target is not searched again"
    one, other = (json.loads((tmp_path / name / "circuit.json").read_text()) for name in ("whole", "halves"))
    assert one == other


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--target", "logit: qqqq"], "'qqqq'"),
        (["--target", "task: none"], "no task"),
        (["--target", "logit: she", "--prompts", "none.txt"], "cannot be read"),
        (["--keep", "-1"], "--keep"),
        (["--depth", "0"], "--depth"),
        (["--names", "none.json"], "none.json"),
        (["--min-effect", "-1"], "-1"),
    ],
)
def test_circuits_that_make_no_sense(small_set, tmp_path, capsys, given, complaint):
    options = ["--contexts", 20, "--out", tmp_path, *given]
    assert complaint in one_line(capsys, "circuit", small_set, *options)


@pytest.mark.parametrize("verb", ["evaluate", "ioi", "circuit", "features", "remove", "steer"])
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
    monkeypatch.setattr(
        "sae_core.model.language_model.load_model", lambda *a, **k: pytest.fail("the model was loaded first")
    )
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
        *(["--memory", value] for value in ("nan", "inf", "0", "-1")),
        *(["--kind", kind, "--l1", "-1"] for kind in ("relu", "tied", "gated")),
        *(["--kind", kind, "-k", "100000"] for kind in ("topk", "jumprelu")),
        ["--multi", "nan"],
        ["--kl", "nan"],
        ["--clip", "nan"],
        ["--lr", "inf"],
        ["--save-every", "nan"],
        ["--dead-after", "0"],
    ],
)
def test_settings_that_make_no_sense(options, tmp_path, capsys):
    if "100000" in options:
        options = [*options, "--tokens", "4096", "--sites", "resid_post.0"]
    one_line(capsys, "train", "storybook", "--out", tmp_path, *options)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "storybook", "--kind", "gru"], "invalid choice: 'gru'"),
        (["train", "storybook", "--tokens", "many"], "invalid int value: 'many'"),
        (["train", "storybook", "--memory", "much"], "invalid float value: 'much'"),
        (["train", "storybook", "--unheard-of"], "--unheard-of"),
        (["import"], "required: FILE"),
        (["evaluate"], "required: DIR"),
        (["gru"], "invalid choice: 'gru'"),
        ([], "required: VERB"),
    ],
)
def test_a_command_line_that_makes_no_sense(arguments, words, capsys):
    """It used to be answered with a page of usage."""
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("subrank: ") and words in error
    assert len(error.splitlines()) == 1 and error.endswith(" --help\n")


def test_a_circuit_of_features_that_suffice_is_scored_beside_random_ones(small_set, tmp_path, capsys):
    """Found on one half of the task's names and templates, scored on the other; the graph has all of its nodes."""
    options = ["--target", "task: ioi", "--nodes", 16, "--cover", 1, "--contexts", 40, "--held", 40, "--examples", 16]
    options += ["--null", 0, "--cards", 0, "--draws", 2]
    status, said, error = run(capsys, "circuit", small_set, "--out", tmp_path, *options)
    assert status == 0 and "features that suffice" in said, error
    result = json.loads((tmp_path / "result.json").read_text())
    nodes = [node["id"] for node in result["circuit"]["nodes"] if node["id"].startswith("5_")]
    assert 0 < len(nodes) <= 16 and result["circuit"]["facts"]["nodes"] == f"{len(nodes)} that suffice"
    resampled = result["judgement"]["controls"][1]
    own, drawn = (resampled[name] for name in ("circuit", "random"))
    assert own["ablated"][0] > max(one["ablated"][0] for one in drawn)
    assert "needs most first" in result["judgement"]["curves"][0]["order"]
    assert result["judgement"]["stability"]["mean"]["nodes"] > 0.3
    assert "--nodes" in one_line(capsys, "circuit", small_set, "--nodes", -1)
