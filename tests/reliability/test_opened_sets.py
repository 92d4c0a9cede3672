"""Every verb on a set whose dictionaries are opened one at a time says what it says of one that fits into memory."""

import shutil
from pathlib import Path

import pytest
from planted import unchecked
from processes import lasting
from tiny import write_tiny
from verbs import LONG_VERBS, run

from sae_core import storage
from sae_core.formats.readers import load_foreign
from subrank.cli import command

VERBS = [verb for verb in LONG_VERBS if verb not in ("train", "sweep")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A set of a tiny model, several dictionaries."""
    folder = tmp_path_factory.mktemp("opened")
    model, options = write_tiny(folder / "model", "neox"), LONG_VERBS["train"]
    with unchecked():
        assert command.main(["train", str(model), "--out", str(folder / "set"), *options]) == 0
    return folder / "set"


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_says_the_same(trained, verb, tmp_path, capsys, monkeypatch):
    said, opened = [], []
    for name in ("whole", "opened"):
        shutil.rmtree(trained / "survey", ignore_errors=True)
        status, _, error = run(capsys, verb, trained, *LONG_VERBS[verb], "--out", tmp_path / name)
        assert status == 0, error
        said.append(lasting(tmp_path / name))
        monkeypatch.setattr(storage, "memory_of", lambda device: 2)
        monkeypatch.setattr(storage, "load_foreign", lambda path: opened.append(path) or load_foreign(path))
    assert len(opened) > len({*opened}) > 1  # again and again
    whole, lazy = said
    assert lazy["result.json"] == whole["result.json"] and lazy.keys() == whole.keys()
