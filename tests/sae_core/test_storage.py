"""What is on disk is whole, is what was saved, and is what other tools read; all else is one line."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from planted import unchecked
from random_saes import every_autoencoder
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import user_error, write_tiny
from trained import PLACES, config, every, finish, memory, same, small

from sae_core import files as disk
from sae_core import storage
from sae_core.data.text import Text
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.normalised import LayerNormed
from sae_core.dictionaries.saes import ReLUSAE, TopKSAE
from sae_core.files import write_json, write_text
from sae_core.model.language_model import load_model
from sae_core.sites import Site, Stream
from sae_core.storage import (
    DictionarySet,
    load_checkpoint,
    load_set,
    read_checkpoint,
    save_checkpoint,
    save_set,
    sets_in,
)
from sae_core.training.config import TrainConfig
from sae_core.training.loop import start, train
from sae_core.training.topk_recipes import Matryoshka, TopK

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
    save_set(original, tmp_path / "set")
    return tmp_path / "set"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- sets ------------------------------------------------------------------------------------------


def test_a_set_reads_back_to_the_bit(original, folder, model):
    loaded = load_set(folder)
    assert (loaded.model, loaded.fingerprint) == (original.model, original.fingerprint)
    assert (loaded.text, loaded.training) == (original.text, original.training)
    assert list(loaded.dictionaries) == sorted(original.dictionaries)
    for site, sae in original.dictionaries.items():
        other = loaded.dictionaries[site]
        assert other.k == sae.k and not other.W_dec.requires_grad
        for name, tensor in sae.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name])
    loaded.check(model)


def test_saving_again_gives_the_same_files(folder, tmp_path):
    save_set(load_set(folder), tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)
    save_set(load_set(folder), folder)  # onto itself
    assert files(tmp_path / "again") == files(folder)


EVERY = every_autoencoder()


@pytest.mark.parametrize("name", EVERY)
def test_sets_of_every_architecture_come_back(name, original, tmp_path):
    dictionary = EVERY[name]
    before = replace(original, dictionaries={Site(1): dictionary}, training=None, origin={"resid_post.1": "elsewhere"})
    save_set(before, tmp_path / "set")
    loaded = load_set(tmp_path / "set")
    assert (loaded.training, loaded.origin) == (None, {"resid_post.1": "elsewhere"})
    other = loaded.dictionaries[Site(1)]
    assert type(other) is (ReLUSAE if name == "tied" else type(dictionary)) and isinstance(other, Dictionary)
    assert not any(parameter.requires_grad for parameter in other.parameters())
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(5))
    f = dictionary.encode(x)
    if name == "gain":  # kept in the lengths of the directions
        assert torch.allclose(other.encode(x), f, atol=1e-5)
        return
    assert torch.equal(other.encode(x), f) or ("tied" in name and torch.allclose(other.encode(x), f, atol=1e-5))
    assert torch.equal(other.decode(f), dictionary.decode(f))
    save_set(loaded, tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "set")


def test_a_dictionary_of_no_listed_kind_is_refused(original, tmp_path):
    class Other(ReLUSAE):
        """Encodes in a way that no file could say."""

    other = Other(8, 24, generator=torch.Generator())
    for dictionary in (other, LayerNormed(other)):
        with user_error(type(dictionary).__name__, "topk"):
            save_set(replace(original, dictionaries={Site(1): dictionary}), tmp_path / "set")


def test_how_it_was_trained_comes_back(original, tmp_path):
    for i, own in enumerate((*every(), TrainConfig(Matryoshka(prefixes=(0.25, 1.0)), kl=0.5, clip=1.0))):
        save_set(replace(original, training=own), tmp_path / str(i))
        assert load_set(tmp_path / str(i)).training == own


def test_a_sweep_is_a_folder_of_sets(original, tmp_path):
    for name in ("b", "a"):
        save_set(original, tmp_path / "sweep" / name)
    assert sets_in(tmp_path / "sweep") == [tmp_path / "sweep" / "a", tmp_path / "sweep" / "b"]
    assert sets_in(tmp_path / "sweep" / "a") == [tmp_path / "sweep" / "a"]
    with user_error("sweep", "a, b"):
        load_set(tmp_path / "sweep")
    for folder in ("gone", "."):
        with user_error(str(tmp_path / folder)):
            sets_in(tmp_path / folder)


def test_the_files_are_those_that_sae_lens_reads(original, folder):
    """SAELens 6: names, shapes and the keys without which it refuses or guesses."""
    assert set(files(folder)) == {"set.json"} | {
        f"{site}/{name}" for site in SITES for name in ("cfg.json", "sae_weights.safetensors")
    }
    for site, hook in zip(SITES, ("blocks.0.hook_resid_post", "blocks.2.mlp.hook_post"), strict=True):
        d_in = original.dictionaries[site].W_dec.shape[1]
        card = json.loads((folder / str(site) / "cfg.json").read_text())
        expected = {
            "architecture": "topk",
            "d_in": d_in,
            "d_sae": 96,
            "k": 5,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "rescale_acts_by_decoder_norm": False,
        }
        assert {name: card[name] for name in expected} == expected
        metadata = card["metadata"]
        assert (metadata["hook_name"], metadata["prepend_bos"], metadata["context_size"]) == (hook, True, 12)
        assert metadata["model_name"] == Path(original.model).name and metadata["dataset_path"] == "storybook"
        tensors = load_file(folder / str(site) / "sae_weights.safetensors")
        shapes = {"W_enc": (d_in, 96), "b_enc": (96,), "W_dec": (96, d_in), "b_dec": (d_in,)}
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
        assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_a_plain_reading_of_the_files_encodes_and_decodes_the_same(original, folder):
    for site, sae in original.dictionaries.items():
        w = load_file(folder / str(site) / "sae_weights.safetensors")
        card = json.loads((folder / str(site) / "cfg.json").read_text())
        x = torch.randn(40, card["d_in"], generator=torch.Generator().manual_seed(1))
        pre = (x - w["b_dec"] * card["apply_b_dec_to_input"]) @ w["W_enc"] + w["b_enc"]
        top = pre.topk(card["k"])
        f = torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())
        assert torch.allclose(sae.encode(x), f, atol=1e-5)
        assert torch.allclose(sae.decode(sae.encode(x)), f @ w["W_dec"] + w["b_dec"], atol=1e-5)
        assert (w["W_dec"].norm(dim=-1) - 1).abs().max() < 1e-5


def test_the_cards_hold_no_path_of_this_machine_and_the_set_remembers_them(original, tmp_path):
    """A folder of dictionaries is given away; what stands in set.json is for the one who made it."""
    words = tmp_path / "words.txt"
    words.write_text("Mary went home. " * 40)
    text = Text(str(words), 12, True)
    assert Path(original.model).is_absolute() and text.source == str(words)
    for name, public in ((original.model, Path(original.model).name), ("owner/name", "owner/name")):
        save_set(replace(original, model=name, text=text), tmp_path / "set")
        for card in (tmp_path / "set").glob("*/cfg.json"):
            metadata = json.loads(card.read_text())["metadata"]
            assert (metadata["model_name"], metadata["dataset_path"]) == (public, "words.txt")
            assert str(tmp_path) not in card.read_text()
        loaded = load_set(tmp_path / "set")
        assert (loaded.model, loaded.text.source) == (name, str(words))


def test_a_set_says_in_which_order_its_text_was_read(original, folder, tmp_path):
    assert load_set(folder).stream_seed is None
    save_set(replace(original, stream_seed=7), tmp_path / "seven")
    assert load_set(tmp_path / "seven").stream_seed == 7


def test_files_can_be_read_by_others(folder):
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.rglob("*") if path.is_file())


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
    (tmp_path / "checkpoint").mkdir()
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


# ---- whole or not at all ---------------------------------------------------------------------------


def fail(*args, **kwargs):
    raise OSError("the disk is full")


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    before = files(tmp_path)
    for name in ("replace", "fdopen"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
            patch.setattr(os, name, fail)
            write_text(path, "new")
        assert files(tmp_path) == before
    write_text(path, "new")
    assert files(tmp_path) == {"a.json": b"new"}  # control


def test_what_gets_a_name_is_on_the_disk_before(tmp_path, monkeypatch):
    """A crash just after the renaming used to be able to leave the name on an empty file."""
    calls, real = [], {name: getattr(os, name) for name in ("fsync", "replace")}
    for name in real:
        monkeypatch.setattr(os, name, lambda *given, name=name: (calls.append(name), real[name](*given)))
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


@pytest.mark.parametrize("what", ["replace", "save_file"])
def test_tensors_that_cannot_be_written_leave_no_trace(original, folder, monkeypatch, what):
    before = files(folder)

    def half(tensors, path):
        Path(path).write_bytes(b"half a file")
        fail()

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        if what == "replace":
            patch.setattr(os, "replace", fail)
        else:
            patch.setattr(disk, "save_file", half)
        save_set(original, folder)
    after = files(folder)
    assert set(after) <= set(before)  # no stray temporary files
    assert all(after[name] == before[name] for name in after)


def test_a_full_disk_as_safetensors_reports_it_is_one_line(original, folder, monkeypatch):
    before = files(folder)

    def full(tensors, path):
        Path(path).write_bytes(b"half a file")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch, user_error(str(folder), "could not be written", "No space left"):
        patch.setattr(disk, "save_file", full)
        save_set(original, folder)
    assert set(files(folder)) == set(before) - {"set.json"}


def test_a_set_whose_writing_was_interrupted_is_no_set(original, folder, monkeypatch):
    """New tensors must never go with an old card: the card is removed first and written last."""
    calls = []

    def stop_at_the_second(tensors, path, real=disk.save_file):
        calls.append(path)
        if len(calls) == 2:
            fail()
        real(tensors, path)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        patch.setattr(disk, "save_file", stop_at_the_second)
        save_set(original, folder)
    with user_error("no dictionaries"):
        load_set(folder)
    save_set(original, folder)
    load_set(folder)


# ---- checkpoints -----------------------------------------------------------------------------------


STOP = 35


@pytest.fixture(scope="module")
def half_way():
    """Every architecture at two sites, some latents dead, between blocks and inside one."""
    stream = small()
    state = start(stream, *every(steps=40))
    run = train(stream, state)
    with unchecked():
        for _ in range(STOP - 1):
            next(run)
    return state


@pytest.fixture
def out(half_way, model, tmp_path) -> Path:
    save_checkpoint(half_way, TEXT, model, tmp_path / "run", contexts="abc")
    return tmp_path / "run"


CPU = torch.device("cpu")


def test_a_checkpoint_reads_back_to_the_bit(half_way, model, out):
    loaded = load_checkpoint(out, device=CPU)
    assert (loaded.step, loaded.block, loaded.position) == (STOP - 1, half_way.block, half_way.position)
    assert half_way.block > 0 and half_way.position > 0
    assert same(memory(loaded), memory(half_way))
    assert any(len(tensor) for name, tensor in memory(loaded).items() if name.endswith(" dead"))
    assert [member.name for member in loaded.members] == [member.name for member in half_way.members]
    for a, b in zip(half_way.members, loaded.members, strict=True):
        assert list(b.sites) == list(PLACES)
        for site, own in a.sites.items():
            assert b.sites[site].scale == own.scale
            for name, weight in b.sites[site].weights.items():
                assert weight.data_ptr() == getattr(b.sites[site].sae, name).data_ptr()
                # the fused optimiser pairs elements by memory order
                assert weight.stride() == own.weights[name].stride()
                moments = b.sites[site].optimizer.state[weight]
                assert weight.stride() == moments["exp_avg"].stride() == moments["exp_avg_sq"].stride()
    card = read_checkpoint(out)
    assert Text(**card["text"]) == TEXT and list(map(TrainConfig.from_json, card["training"])) == every(steps=40)
    assert card["fingerprint"] == model.fingerprint() and card["contexts"] == "abc"
    assert [member.bfloat16 for member in loaded.members] == card["bfloat16"] == [False] * len(loaded.members)


def test_a_state_before_its_first_step_can_be_saved(model, tmp_path):
    state = start(small(), config())
    save_checkpoint(state, TEXT, model, tmp_path, contexts="abc")
    resumed = load_checkpoint(tmp_path, device=CPU)
    assert same(memory(resumed), memory(state))
    finish(small(), resumed)
    finish(small(), state)
    assert same(memory(resumed), memory(state))


def test_a_new_checkpoint_replaces_the_old_one(half_way, model, out):
    save_checkpoint(replace(half_way, step=5), TEXT, model, out, contexts="abc")
    assert set(files(out)) == {"checkpoint/state.json", "checkpoint/state-5.safetensors"}
    assert load_checkpoint(out, device=CPU).step == 5


@pytest.mark.parametrize("what", ["save_file", "write_json"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(half_way, model, out, monkeypatch, what):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        patch.setattr(disk if what == "save_file" else storage, what, fail)
        save_checkpoint(replace(half_way, step=5), TEXT, model, out, contexts="abc")
    loaded = load_checkpoint(out, device=CPU)
    assert loaded.step == STOP - 1 and same(memory(loaded), memory(half_way))


def test_folders_without_a_checkpoint(tmp_path):
    for folder in (tmp_path, tmp_path / "gone"):
        with user_error(str(folder), "no checkpoint"):
            load_checkpoint(folder, device=CPU)


@pytest.mark.parametrize(
    "change",
    [
        {"scales": {"resid_post.9": 1.0}},
        {"scales": {"nowhere": 1.0}},
        {"scales": None},
        {"training": [{"recipe": {"kind": "gru"}}]},
        {"training": [{"k": 3}]},
        {"training": None},
        {"bfloat16": []},
        {"bfloat16": None},
        {"file": "state-99.safetensors"},
        {"file": 3},
    ],
)
def test_checkpoint_cards_with_wrong_values(out, change):
    path = out / "checkpoint" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with user_error(), unchecked():
        load_checkpoint(out, device=CPU)


def test_damaged_checkpoints(out, tmp_path):
    file = f"state-{STOP - 1}.safetensors"

    def damaged(change) -> Path:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(out, copy)
        change(copy / "checkpoint")
        return copy

    def without(part: str, instead: torch.Tensor | None = None):
        def change(folder):
            tensors = load_file(folder / file)
            (name,) = [name for name in tensors if name.startswith("0/resid_post.0/") and name.endswith(part)]
            del tensors[name]
            save_file(tensors if instead is None else tensors | {name: instead}, folder / file)

        return change

    for change in (
        lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:500]),
        lambda folder: (folder / file).unlink(),
        lambda folder: (folder / "state.json").write_text("{"),
        lambda folder: (folder / "state.json").write_text("{}"),
        lambda folder: (folder / "state.json").write_text("[]"),
        without("0/b_dec"),
        without("state/silent"),
        without("exp_avg/W_dec"),
        without("0/W_dec", torch.zeros(5)),
        without("0/W_enc", torch.zeros(3, 4)),
    ):
        copy = damaged(change)
        with user_error(str(copy)):
            load_checkpoint(copy, device=CPU)
    load_checkpoint(damaged(lambda folder: None), device=CPU)  # control
