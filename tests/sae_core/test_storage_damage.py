"""Sets of another model, damaged ones, and writing that is interrupted: one line each, and never half a set."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted import unchecked
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import user_error, write_tiny

from sae_core import files as disk
from sae_core.data.text import Text
from sae_core.dictionaries.saes import TopKSAE
from sae_core.files import write_text
from sae_core.model.language_model import load_model
from sae_core.sites import Site, Stream
from sae_core.storage import DictionarySet, load_set
from sae_core.training.config import TrainConfig
from sae_core.training.topk_recipes import TopK

TEXT = Text("storybook", 12, True)
SITES = (Site(0), Site(2, Stream.MLP_HIDDEN))


@pytest.fixture(scope="module")
def model(tiny_models):
    return tiny_models["gpt2"]


@pytest.fixture(scope="module")
def original(model) -> DictionarySet:
    """Dictionaries with nothing at its initial value."""
    saes = {}
    for i, site in enumerate(SITES):
        generator = torch.Generator().manual_seed(i)
        saes[site] = TopKSAE(model.d_in(site), 96, 5, generator=generator).requires_grad_(False)
        for name in ("W_enc", "b_enc", "b_dec"):
            parameter = getattr(saes[site], name)
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return DictionarySet(model.name, model.fingerprint(), TEXT, saes, TrainConfig(TopK(5), lr=1e-3))


@pytest.fixture
def folder(original, tmp_path) -> Path:
    original.save(tmp_path / "set")
    return tmp_path / "set"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fail(*args, **kwargs):
    raise OSError("the disk is full")


# ---- the wrong model -------------------------------------------------------------------------------


def test_a_set_belongs_to_its_model(original, tiny_models, tmp_path):
    other_weights = load_model(write_tiny(tmp_path / "other", "gpt2", seed=1), device="cpu")
    with user_error("another model", other_weights.name):
        original.check(other_weights)
    with user_error("another model"):
        original.check(tiny_models["neox"])  # equally wide
    original.check(tiny_models["gpt2"])


def test_widths_and_layers_must_fit(original, model, storybook):
    with user_error("resid_post.0", "width 32", f"width {storybook.d_model}"):
        original.check(storybook)
    deep = replace(original, dictionaries={Site(7): original.dictionaries[Site(0)]})
    with user_error("resid_post.7", "3"):
        deep.check(model)
    hidden = Site(2, Stream.MLP_HIDDEN)
    narrow = replace(original, dictionaries={hidden: original.dictionaries[Site(0)]})
    with user_error("mlp_hidden.2", "width 32", "width 64"):
        narrow.check(model)


# ---- damage ----------------------------------------------------------------------------------------


def test_folders_without_a_set(tmp_path):
    with user_error(str(tmp_path / "gone"), "no folder"):
        load_set(tmp_path / "gone")
    with user_error(str(tmp_path), "no dictionaries"):
        load_set(tmp_path)
    write_text(tmp_path / "checkpoint" / "state.json", "{}")
    with user_error(str(tmp_path), "--resume"):
        load_set(tmp_path)


@pytest.mark.parametrize("length", [0, 4, 100, -8])
def test_a_truncated_file_of_tensors(folder, length):
    path = folder / "resid_post.0" / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with user_error(str(path), "damaged"):
        load_set(folder)


@pytest.mark.parametrize("name", ["set.json", "resid_post.0/cfg.json"])
@pytest.mark.parametrize("content", [b"", b'{"model": ', b"\xff\xfe", b"[]", b"{}", b"null"])
def test_a_damaged_card(folder, name, content):
    (folder / name).write_bytes(content)
    with user_error(str(folder)):
        load_set(folder)


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
def test_a_missing_file(folder, name):
    (folder / "resid_post.0" / name).unlink()
    with user_error(str(folder / "resid_post.0"), name):
        load_set(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"sites": ["nowhere.3"]},
        {"sites": [3]},
        {"text": {"source": "storybook"}},
        {"text": {"unheard": 1}},
        {"training": {"k": 3}},
        {"training": {"recipe": {"kind": "gru"}}},
        {"training": {"recipe": {"kind": ["topk"]}}},
        {"training": {"recipe": "topk"}},
        {"training": {"tokens": "many"}},
        {"sites": None},
    ],
)
def test_a_card_with_wrong_values(folder, change):
    card = json.loads((folder / "set.json").read_text())
    (folder / "set.json").write_text(json.dumps(card | change))
    with user_error(), unchecked():
        load_set(folder)


@pytest.mark.parametrize(
    "change",
    [
        *({"k": k} for k in (0, 1000, None, "many")),
        *({"architecture": name} for name in ("jumprelu", ["topk"], "gru")),
        {"normalize_activations": "by eye"},
    ],
)
def test_a_dictionary_with_wrong_values(folder, change):
    path = folder / "resid_post.0" / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with user_error(), unchecked():
        load_set(folder)


def test_tensors_that_do_not_fit(folder):
    path = folder / "resid_post.0" / "sae_weights.safetensors"
    tensors = load_file(path)
    for wrong in (
        {"W_enc": torch.zeros(32, 95)},
        {"b_dec": torch.zeros(31)},
        {"W_dec": torch.zeros(96)},
        {"W_enc": tensors["W_dec"].clone()},
    ):
        save_file(tensors | wrong, path)
        with user_error(str(folder / "resid_post.0")):
            load_set(folder)
    save_file({name: tensor for name, tensor in tensors.items() if name != "b_enc"}, path)
    with user_error("b_enc"):
        load_set(folder)


@pytest.mark.parametrize("what", ["replace", "save_file"])
def test_tensors_that_cannot_be_written_leave_no_trace(original, folder, monkeypatch, what):
    before = files(folder)

    def half(tensors, path, **how):
        Path(path).write_bytes(b"half a file")
        fail()

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        if what == "replace":
            patch.setattr(os, "replace", fail)
        else:
            patch.setattr(disk, "save_file", half)
        original.save(folder)
    assert files(folder) == before  # no stray temporary files


def test_a_full_disk_as_safetensors_reports_it_is_one_line(original, folder, monkeypatch):
    before = files(folder)

    def full(tensors, path, **how):
        Path(path).write_bytes(b"half a file")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    message = r"could not be written: .*No space left.*; it takes 0.02 MiB, and .* are free there: .*/set/resid_post.0"
    with monkeypatch.context() as patch, pytest.raises(OSError, match=message):
        patch.setattr(disk, "save_file", full)
        original.save(folder)
    assert files(folder) == before


def test_a_set_whose_writing_fails_is_the_old_one(original, folder, monkeypatch):
    """New tensors must never go with an old card."""
    before, calls = files(folder), []

    def stop_at_the_second(tensors, path, real=disk.save_file, **how):
        calls.append(path)
        if len(calls) == 2:
            fail()
        real(tensors, path, **how)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        patch.setattr(disk, "save_file", stop_at_the_second)
        original.save(folder)
    assert files(folder) == before
