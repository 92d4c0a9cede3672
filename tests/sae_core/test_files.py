"""Files appear whole or not at all."""

import os
from pathlib import Path

import pytest
import torch

from sae_core import files as disk
from sae_core.files import write_json, write_text


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fail(*args, **kwargs):
    raise OSError("the disk is full")


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    before = files(tmp_path)
    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match=f"disk is full.*{path}"):
            patch.setattr(os, name, fail)
            write_text(path, "new")
        assert files(tmp_path) == before
    write_text(path, "new")
    assert files(tmp_path) == {"a.json": b"new"}  # control


def test_what_gets_a_name_is_on_the_disk_before(tmp_path, monkeypatch):
    """A crash just after the renaming used to be able to leave the name on an empty file."""
    calls, real = [], {name: getattr(os, name) for name in ("fsync", "replace")}
    for name in real:
        monkeypatch.setattr(os, name, lambda *arguments, name=name: (calls.append(name), real[name](*arguments)))
    write_json(tmp_path / "a.json", {"a": 1})
    disk.write_tensors(tmp_path / "b.safetensors", {"b": torch.ones(3)})
    assert calls == ["fsync", "replace"] * 2
    assert disk.read_json(tmp_path / "a.json") == {"a": 1}


def test_a_value_that_is_no_json_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    before = files(tmp_path)
    for value in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises((TypeError, ValueError)):
            write_json(path, value)
        assert files(tmp_path) == before
