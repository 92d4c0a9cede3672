"""Help, version, and a command line that makes no sense."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from verbs import VERBS

from subrank.cli import command

ROOT = Path(__file__).resolve().parents[3]


def test_help_answers_without_heavy_imports():
    """Which is what makes it quick."""
    code = (
        "import sys\nfrom subrank.cli import command\ntry: command.main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'transformer_lens'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(verb.split()[0] in done.stdout for verb in VERBS)


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--version"])
    text = (ROOT / "pyproject.toml").read_text()
    assert stop.value.code == 0 and f'version = "{capsys.readouterr().out.split()[1]}"' in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_the_common_options(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([*verb.split(), "--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and all(option in printed for option in ("--seed", "--out"))
    assert ("--device" in printed) == ("--dtype" in printed) == (verb != "study superposition")  # it has no model


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
        (["study", "gru"], "invalid choice: 'gru'"),
        (["study"], "required: VERB"),
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


@pytest.mark.slow
def test_the_hub_is_asked_from_a_fresh_interpreter(tmp_path):
    """It used to fail there: huggingface_hub loads its parts only when they are imported."""
    call = [sys.executable, "-m", "subrank", "train", "nobody/nothing", "--out", str(tmp_path)]
    unreachable = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(call, capture_output=True, text=True, env=unreachable, cwd=ROOT)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "hub does not answer" in done.stderr
