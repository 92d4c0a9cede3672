"""`subrank train`: runs, resumed runs, sweeps, and a disk that is full."""

import json
import math
import resource
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from signal import SIGINT, SIGTERM, raise_signal
from types import ModuleType, SimpleNamespace

import pytest
import torch
from verbs import one_line, result_of, run

import subrank.cli.train
from sae_core.files import write_text
from sae_core.sites import Site
from sae_core.storage import load_set, sets_in
from subrank.cli import command
from subrank.cli.saving import save_sets
from subrank.cli.stopping import Stopped, stoppable
from subrank.result import Provenance

ROOT = Path(__file__).resolve().parents[3]
PROVENANCE = Provenance("train", "0", "3", {}, "m", "f", "cpu", {}, "now")


@pytest.mark.slow
def test_an_interrupted_training_resumes_to_the_same_numbers(tmp_path, capsys, monkeypatch):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    options = ["--sites", "resid_post.0", "mlp_out.2", "--tokens", 8192, "--batch", 512, "--context", 64]
    assert run(capsys, "train", "storybook", "--out", whole, *options)[0] == 0

    real = subrank.cli.train.steps_shown

    def interrupted(steps, total, done):
        for step in real(steps, total, done):
            if step.step == 7:
                raise_signal(SIGTERM)
            yield step

    monkeypatch.setattr(subrank.cli.train, "steps_shown", interrupted)
    status, _, error = run(capsys, "train", "storybook", "--out", halves, *options)
    assert status == 143 and len(error.splitlines()) == 1 and f"--out {halves} --resume" in error
    assert not (halves / "set.json").exists()
    monkeypatch.setattr(subrank.cli.train, "steps_shown", real)
    monkeypatch.setitem(sys.modules, "trackio", trackio := ModuleType("trackio"))
    calls = []
    for name in ("init", "log", "finish"):
        setattr(trackio, name, lambda *values, what=name, **how: calls.append((what, values, how)))
    assert run(capsys, "train", "storybook", "--out", halves, "--resume", "--log", "trackio")[0] == 0
    assert [name for name, _, _ in calls] == ["init", "log", "finish"]
    assert calls[1][2] == {"step": 16} and "mlp_out.2/fvu" in calls[1][1][0]
    uninterrupted, resumed = load_set(whole), load_set(halves)
    for site, sae in uninterrupted.dictionaries.items():
        for name, tensor in sae.state_dict().items():
            assert torch.equal(tensor, resumed.dictionaries[site].state_dict()[name])
    assert result_of(whole) == result_of(halves)


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> tuple[Path, Path]:
    """A run of one step of sixteen with -k 8 on a text file, and that file. Tests leave both as they are."""
    folder = tmp_path_factory.mktemp("begun")
    out, text = folder / "out", folder / "words.txt"
    text.write_text("Anna gave the book to Ben. He read it at home.\n" * 900)
    options = ["--sites", "resid_post.0", "--tokens", 8192, "--batch", 512, "--context", 64, "-k", 8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subrank.cli.train, "finishing_a_step", lambda: nullcontext(lambda: SIGINT))
        arguments = ["train", "storybook", "--out", out, "--text", text, *options]
        assert command.main([str(argument) for argument in arguments]) == 130
    return out, text


def test_a_run_that_was_killed_inside_its_first_checkpoint_can_be_started_again(tmp_path, capsys):
    """Without --resume it was told to give that, and with it to leave that out."""
    write_text(tmp_path / "out" / "run.json", "{}")
    write_text(tmp_path / "out" / "checkpoint" / "state-60.safetensors", "half")
    again = ["train", tmp_path / "none", "--out", tmp_path / "out"]
    assert "no model directory" in one_line(capsys, *again)  # it gets as far as the model
    assert "start without --resume" in one_line(capsys, *again, "--resume")
    write_text(tmp_path / "out" / "checkpoint" / "state.json", "{}")
    assert "--resume goes on" in one_line(capsys, *again)  # control


def test_a_signal_while_sets_are_measured_says_how_to_go_on(tmp_path, monkeypatch):
    def finish(report) -> None:
        raise_signal(SIGTERM)

    for begun, advice in ((False, ""), (True, "; go on with: the same")):
        if begun:
            write_text(tmp_path / "checkpoint" / "state.json", "{}")
        monkeypatch.setattr(subrank.cli.train, "_take_steps", lambda *arguments: None)
        with stoppable(), pytest.raises(Stopped) as stop:
            subrank.cli.train.train_into(tmp_path, SimpleNamespace(finish=finish), go_on_with="the same")
        assert (stop.value.status, stop.value.advice) == (143, advice)


def test_what_cannot_be_said_of_new_sets_leaves_none(tmp_path):
    """A set was there, its numbers were missing, and the run could be neither started nor resumed."""
    quality = SimpleNamespace(to_json=lambda: {"fvu": math.nan})
    saes = SimpleNamespace(quality=quality, write=lambda folder: write_text(folder / "set.json", "{}"))
    with pytest.raises(ValueError, match="JSON"):
        save_sets(tmp_path, {"topk": saes}, PROVENANCE)
    assert not [*tmp_path.iterdir()]
    quality.to_json = dict
    save_sets(tmp_path, {"topk": saes}, PROVENANCE)
    assert {path.name for path in tmp_path.iterdir()} >= {"set.json", "result.json", "provenance.json"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["-k", 16], "begun with -k 8, not -k 16;"),  # the default: it used to pass for not given
        (["-k", 8, "--batch", 256], "begun with --batch 512, not --batch 256;"),
        (["-k", 8, 4], "not -k 8 4;"),
        (["--tokens", 8192, "--seed", 1, "--lr", 0.1], "begun with --lr None, --seed 0, not --lr 0.1, --seed 1;"),
        (["--text", "storybook"], "words.txt, not --text storybook;"),
        (["--bos", "none"], "begun with --bos <|endoftext|>, not --bos none;"),
        (["--exclude", "Mary"], "begun with --exclude nothing, not --exclude Mary;"),
        (["--sites", "resid_post"], "begun with --sites resid_post.0, not --sites resid_post.0 resid_post.1"),
        (["--kind", "relu"], "begun with --kind topk, not --kind relu;"),
        (["--memory", 1], "begun with --memory 2.0, not --memory 1.0;"),
        (["--memory", "nan"], "--memory must be"),
        (["--l1", 5], "begun with --l1 nothing, not --l1 5.0;"),
        (["--quick"], "begun with --quick False, not --quick True;"),
    ],
)
def test_a_resumed_run_must_be_the_run_that_was_begun(begun, capsys, options, complaint):
    assert complaint in one_line(capsys, "train", "storybook", "--out", begun[0], *options, "--resume")


@pytest.mark.slow
def test_a_resumed_run_can_be_named_again_or_by_its_config(begun, tmp_path, capsys):
    """Of a run in a file, too, the message says what differs; half a line in the log is no obstacle."""
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


@pytest.mark.slow
def test_a_resumed_run_keeps_its_precision_and_says_so(begun, tmp_path, capsys, monkeypatch):
    from sae_core.dictionaries import sparse
    from sae_core.training.checkpoint import read_checkpoint

    out = shutil.copytree(begun[0], tmp_path / "out")
    (in_bfloat16,) = read_checkpoint(out).bfloat16
    monkeypatch.setattr(sparse, "multiplies_bfloat16", lambda device: not in_bfloat16)
    status, printed, error = run(capsys, "train", "--out", out, "--resume")
    assert status == 0, error
    assert f"goes on in {'bfloat16' if in_bfloat16 else 'float32'}, in which it began" in printed


@pytest.mark.slow
def test_quick_training_says_so_and_still_does_once_it_is_resumed(tmp_path, capsys, monkeypatch):
    text, quick, resumed = tmp_path / "words.txt", tmp_path / "quick", tmp_path / "resumed"
    text.write_text("Anna gave the book to Ben. He read it at home.\n" * 400)
    options = ["--text", text, "--sites", "resid_post.0", "--tokens", 1024, "--batch", 512, "--context", 32, "--quick"]
    assert run(capsys, "train", "storybook", "--out", quick, *options)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(subrank.cli.train, "finishing_a_step", lambda: nullcontext(lambda: SIGINT))
        assert run(capsys, "train", "storybook", "--out", resumed, *options)[0] == 130
    assert run(capsys, "train", "--out", resumed, "--resume")[0] == 0
    assert result_of(quick)["note"].startswith("quick: about a tenth") and result_of(quick) == result_of(resumed)
    usual = tmp_path / "usual"
    assert run(capsys, "train", "storybook", "--out", usual, *options[:-1])[0] == 0 and "note" not in result_of(usual)


@pytest.mark.slow
def test_a_sweep_a_config_file_and_a_cache(tmp_path, capsys):
    """One pass over the model trains all members; its run.json, with the activations kept, gives the same again."""
    sweep, again, kept = tmp_path / "sweep", tmp_path / "again", tmp_path / "kept"
    options = ["--tokens", 16_000, "--batch", 256, "--context", 32, "--sites", "resid_post.1", "attn_out.2"]
    kinds = ["--kind", "batchtopk", "tied", "-k", 8, "--cache", kept]
    status, printed, error = run(capsys, "train", "storybook", "--out", sweep, *options, *kinds)
    assert status == 0 and "the cache takes about" in printed, error
    names = [path.name for path in sets_in(sweep)]
    assert names == ["batchtopk-n512-k8-seed0", "tied-n512-l12-seed0"]
    measured = result_of(sweep)["dictionaries"]
    assert {*measured} == {*names} and (kept / "block-00000.safetensors").exists()
    l0s = [row["l0"] for row in measured[names[0]].values()]  # of what is saved, on text that was held out
    assert l0s == pytest.approx([8, 8], rel=0.1)
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
    status, printed, error = run(capsys, "evaluate", sweep, "--contexts", 6, "--spliced", 2, "--out", tmp_path / "e")
    assert status == 0, error
    assert all(name in printed for name in names) and (tmp_path / "e" / "evaluate.html").exists()


@pytest.mark.slow
def test_a_sweep_over_sizes_penalties_and_seeds(tmp_path, capsys):
    """Members are all combinations, and share the order of the text, which is that of the first seed."""
    options = ["--tokens", 1024, "--batch", 256, "--context", 32, "--sites", "resid_post.1"]
    sizes = ["--kind", "topk", "relu", "-k", 4, "--expansion", 1, 2, "--l1", 0.5, 1, "--seeds", 1, 0]
    status, _, error = run(capsys, "train", "storybook", "--out", tmp_path, *options, *sizes)
    assert status == 0, error
    kinds = [
        f"{kind}-n{n}-{sparsity}"
        for kind, sparsity in (("relu", "l10.5"), ("relu", "l11"), ("topk", "k4"))
        for n in (128, 256)
    ]
    assert {path.name for path in sets_in(tmp_path)} == {f"{kind}-seed{seed}" for kind in kinds for seed in (0, 1)}
    for folder in sets_in(tmp_path):
        member = load_set(folder)
        assert member.stream_seed == 1 and member.training.seed == int(folder.name[-1])
        assert member.dictionaries[Site(1)].n_latents == int(folder.name.split("-n")[1].split("-")[0])


@pytest.mark.slow
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


@pytest.mark.slow
def test_training_on_kl(tmp_path, capsys):
    options = ["--tokens", 4096, "--batch", 512, "--context", 64, "--sites", "mlp_out.4", "--kl", 0.5]
    status, _, error = run(capsys, "train", "storybook", "--out", tmp_path / "a", *options)
    assert status == 0, error
    assert load_set(tmp_path / "a").training.kl == 0.5
    assert "--cache" in one_line(capsys, "train", "storybook", "--out", tmp_path / "b", *options, "--cache", tmp_path)
