"""Every mistake is answered in one line, with exit status 2."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from verbs import VERBS, one_line, run

ROOT = Path(__file__).resolve().parents[3]


def test_a_missing_model_or_text(tmp_path, capsys):
    assert "no model directory" in one_line(capsys, "train", tmp_path / "none", "--out", tmp_path / "o")
    missing = tmp_path / "none.jsonl"
    assert str(missing) in one_line(capsys, "train", "storybook", "--text", missing, "--out", tmp_path / "o")
    (tmp_path / "empty").mkdir()
    assert "config.json" in one_line(capsys, "train", tmp_path / "empty", "--out", tmp_path / "o")


def test_a_hub_that_does_not_answer(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sae_core.model.hub.hub_answers", lambda *a, **k: False)
    assert "hub does not answer" in one_line(capsys, "train", "nobody/nothing", "--out", tmp_path)
    assert "hub does not answer" in one_line(capsys, "train", "storybook", "--text", "nobody/text", "--out", tmp_path)


def test_a_text_that_is_too_short(tmp_path, capsys):
    (tmp_path / "short.txt").write_text("Mary went home.")
    error = one_line(capsys, "train", "storybook", "--text", tmp_path / "short.txt", "--out", tmp_path / "o")
    assert "fewer than one context" in error


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--target", "logit: qqqq"], "'qqqq'"),
        (["--target", "task: none"], "no task"),
        (["--target", "logit: she", "--prompts", "none.txt"], "cannot be read"),
        (["--target", "logit: she", "--prompts", "/dev/null"], "a device"),
        (["--keep", "-1"], "--keep"),
        (["--depth", "0"], "--depth"),
        (["--names", "none.json"], "none.json"),
        (["--min-effect", "-1"], "-1"),
    ],
)
def test_circuits_that_make_no_sense(untrained_set, tmp_path, capsys, options, complaint):
    settings = ["--contexts", 20, "--out", tmp_path]
    assert complaint in one_line(capsys, "circuit", untrained_set, *settings, *options)


@pytest.mark.parametrize(
    ("verb", "options", "complaint"),
    [
        ("circuit", ["--target", ""], "empty"),
        ("ioi", ["--site", " "], "empty"),
        ("ioi", ["--positions", "-1", "S9"], "S9"),
        ("ioi", ["--sites", "nowhere"], "no site"),
        ("ioi", ["--site", "mlp_out.1"], "no dictionary"),
        ("remove", ["--site", "mlp_out.1"], "no dictionary"),
        ("remove", ["--budget", "0"], "budget"),
        ("steer", ["--temperature", "-1"], "temperature"),
        ("steer", ["--features", "5_1,5_1"], "twice"),
        ("steer", ["--features", ","], "names no feature"),
        ("features", ["--features", "5_1", "--site", "resid_post.5"], "exclude each other"),
        ("prompt", [" "], "empty"),
        ("prompt", ["Mary", "--features", "0"], "--features must be at least 1"),
        ("prompt", ["Mary", "--circuit", "none"], "no result"),
        ("evaluate", ["--device", "meta"], "meta"),
        ("evaluate", ["--text", ""], "empty"),
    ],
)
def test_what_can_be_said_without_the_model_is(untrained_set, tmp_path, capsys, monkeypatch, verb, options, complaint):
    monkeypatch.setattr("sae_core.model.language_model.load_model", lambda *a, **k: pytest.fail("it was loaded first"))
    assert complaint in one_line(capsys, verb, untrained_set, "--out", tmp_path, *options)


@pytest.mark.parametrize("verb", ["evaluate", "ioi", "circuit", "features", "remove", "steer"])
def test_a_folder_that_holds_no_dictionaries(verb, tmp_path, capsys):
    assert "no dictionaries" in one_line(capsys, verb, tmp_path)
    assert "no folder" in one_line(capsys, verb, tmp_path / "none")


def test_a_set_made_for_another_model(untrained_set, tmp_path, capsys):
    from tiny import write_tiny

    other = write_tiny(tmp_path / "neox", "neox")
    error = one_line(capsys, "ioi", untrained_set, "--model", other or tmp_path / "neox", "--out", tmp_path / "o")
    assert "width" in error or "another model" in error or "layers run" in error


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("5_99999", "numbered from 0"),
        ("nonsense", "no feature"),
        ("0_1", "below it"),
        ("mlp_out.5_1", "no dictionary"),
    ],
)
def test_a_target_that_is_not_there(untrained_set, tmp_path, capsys, target, complaint):
    assert complaint in one_line(capsys, "circuit", untrained_set, "--target", target, "--out", tmp_path)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--feature", "5_99999"], "has 512"),
        (["--feature", "nonsense"], "no feature"),
        (["--prompt", " "], "empty"),
        (["--prompt", "Mary " * 250], "do not fit"),
        (["--strengths", "strong"], "invalid float value"),
        (["--strengths", "nan"], "finite"),
        (["--mode", "off", "--strengths", "1"], "only with --mode scale or clamp"),
    ],
)
def test_steering_that_makes_no_sense(untrained_set, tmp_path, capsys, options, complaint):
    assert complaint in one_line(capsys, "steer", untrained_set, "--out", tmp_path, *options)


@pytest.mark.parametrize(
    ("prompt", "options", "complaint"),
    [
        ("Mary " * 300, [], "give less text"),
        ("Mary went", ["--logit", "qqqq"], "not one token"),
        ("Mary went", ["--logit", "she - he - it"], "difference of two"),
    ],
)
def test_a_prompt_that_cannot_be_read(untrained_set, tmp_path, capsys, prompt, options, complaint):
    assert complaint in one_line(capsys, "prompt", untrained_set, prompt, "--out", tmp_path, *options)


def test_damaged_weights(untrained_set, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(untrained_set, broken)
    weights = broken / "resid_post.2" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "damaged" in one_line(capsys, "ioi", broken)


def test_an_out_that_cannot_be_written_is_found_before_work_starts(untrained_set, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(
        "sae_core.model.language_model.load_model", lambda *a, **k: pytest.fail("the model was loaded first")
    )
    for verb in (["train", "storybook"], ["ioi", untrained_set], ["demo"]):
        assert "cannot be written" in one_line(capsys, *verb, "--out", tmp_path / "file" / "out")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_in_which_nothing_can_be_written_is_found_before_work_starts(
    verb, number, untrained_set, tmp_path, capsys, monkeypatch
):
    """By its owner's rights, a disk that is mounted read-only, or a full one; the superuser may write anywhere."""

    def refuse(*args, **how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("sae_core.model.language_model.load_model", lambda *a, **k: pytest.fail("it was loaded first"))
    arguments = {
        "harvest": ["storybook"],
        "train": ["storybook"],
        "demo": [],
        "import": [untrained_set / "resid_post.0", "--model", "storybook"],
    }
    arguments |= {
        "prompt": [untrained_set, "a prompt"],
        "study superposition": [],
        "study splitting": [untrained_set, untrained_set],
    }
    for folder, function in ((tmp_path, "tempfile.TemporaryFile"), (tmp_path / "new", "pathlib.Path.mkdir")):
        with monkeypatch.context() as patch:
            patch.setattr(function, refuse)
            error = one_line(capsys, *verb.split(), *arguments.get(verb, [untrained_set]), "--out", folder)
        assert f"--out {folder} cannot be written: {os.strerror(number)}" in error and not [*tmp_path.iterdir()]


def test_training_never_overwrites_a_set(untrained_set, capsys):
    before = (untrained_set / "set.json").read_bytes()
    for resume in ([], ["--resume"]):
        error = one_line(capsys, "train", "storybook", "--out", untrained_set, *resume)
        assert "holds dictionaries already, with nothing left to resume" in error
    assert (untrained_set / "set.json").read_bytes() == before


SMALL = ["--tokens", "4096", "--context", "64", "--sites", "resid_post.0"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--sites", "resid_post.9"], "no site resid_post.9 in this 6-layer model"),
        (["--sites", "nowhere"], "'nowhere'"),
        (["-k", "0"], "k must be at least 1; got 0"),
        (["--tokens", "10"], "10 training tokens are fewer than one batch"),
        (["--lr", "-1"], "--lr must be above 0"),
        (["--context", "9999"], "does not fit storybook, which reads 256"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--dtype", "float8"], "float8"),
        (["--resume"], "no checkpoint to resume from"),
        *((["--memory", value], "--memory must be a finite number") for value in ("nan", "inf")),
        *((["--memory", value], "--memory must be above 0") for value in ("0", "-1")),
        *((["--kind", kind, "--l1", "-1"], "--l1 must be at least 0") for kind in ("relu", "tied", "gated")),
        *(([*SMALL, "--kind", kind, "-k", "100000"], "latents, 512; got k=100000") for kind in ("topk", "jumprelu")),
        (["--multi", "nan"], "--multi must be a finite number"),
        (["--kl", "nan"], "--kl must be a finite number"),
        (["--clip", "nan"], "--clip must be a finite number"),
        (["--lr", "inf"], "--lr must be a finite number"),
        (["--save-every", "nan"], "--save-every must be a finite number"),
        (["--dead-after", "0"], "--dead-after must be at least 1"),
        ([*SMALL, "--expansion", "1099511627776"], "--expansion must be at most"),
        (["--column", "story"], "--column"),
    ],
)
def test_settings_that_make_no_sense(options, complaint, tmp_path, capsys):
    assert complaint in one_line(capsys, "train", "storybook", "--out", tmp_path, *options)


@pytest.mark.parametrize("limit", ["--expansion", "--batch"])
def test_more_memory_than_the_machine_has_is_one_line_before_the_text_is_read(limit, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sae_core.data.text.Text.read", lambda *a: pytest.fail("the text was read first"))
    options = [limit, 10**8, "--tokens", 10**9, "--sites", "resid_post.0"]
    error = one_line(capsys, "train", "storybook", "--out", tmp_path, *options)
    assert "not enough" in error and "bytes)" in error and " has " in error and limit in error


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("CUDA out of memory.\nTried 9 GiB."), RuntimeError("bad_alloc")],
)
def test_memory_that_runs_out_is_one_line_with_the_way_out(error, untrained_set, tmp_path, capsys, monkeypatch):
    def run_out(*args, **how):
        raise error

    monkeypatch.setattr("subrank.saes.load", run_out)
    assert "--lm-batch" in one_line(capsys, "steer", untrained_set, "--out", tmp_path)


def test_an_error_of_ours_is_not_taken_for_too_little_memory(untrained_set, tmp_path, capsys, monkeypatch):
    def fail(*args, **how):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("subrank.saes.load", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        run(capsys, "steer", untrained_set, "--out", tmp_path)
