"""What is on disk is whole, is what was saved, and is what other tools read; all else is one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from random_saes import every_autoencoder
from safetensors.torch import load_file
from tiny import user_error
from trained import every

from sae_core.data.text import Text
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.normalised import LayerNormed
from sae_core.dictionaries.saes import ReLUSAE, TopKSAE
from sae_core.sites import FeatureId, Site, Stream
from sae_core.storage import DictionarySet, load_set, sets_in
from sae_core.training.config import TrainConfig
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
    original.save(tmp_path / "set")
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
    load_set(folder).save(tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)
    load_set(folder).save(folder)  # onto itself
    assert files(tmp_path / "again") == files(folder)


EVERY = every_autoencoder()


@pytest.mark.parametrize("name", EVERY)
def test_sets_of_every_architecture_come_back(name, original, tmp_path):
    dictionary = EVERY[name]
    before = replace(original, dictionaries={Site(1): dictionary}, training=None, origin={"resid_post.1": "elsewhere"})
    before.save(tmp_path / "set")
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
    loaded.save(tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "set")


def test_a_dictionary_of_no_listed_kind_is_refused(original, tmp_path):
    class Other(ReLUSAE):
        """Encodes in a way that no file could say."""

    other = Other(8, 24, generator=torch.Generator())
    for dictionary in (other, LayerNormed(other)):
        with user_error(type(dictionary).__name__, "topk"):
            replace(original, dictionaries={Site(1): dictionary}).save(tmp_path / "set")


def test_how_it_was_trained_comes_back(original, tmp_path):
    for i, training in enumerate((*every(), TrainConfig(Matryoshka(prefixes=(0.25, 1.0)), kl=0.5, clip=1.0))):
        replace(original, training=training).save(tmp_path / str(i))
        assert load_set(tmp_path / str(i)).training == training


def test_large_norms_and_texts_come_back(folder, tmp_path):
    """Ten times the median norm of some models is beyond a million, and long runs read more than a billion tokens."""
    small = load_set(folder)
    large = replace(small, text=replace(small.text, max_tokens=2 * 10**9))
    for sae in large.dictionaries.values():
        sae.outlier_norm = 2.5e6
    large.save(tmp_path / "large")
    read = load_set(tmp_path / "large")
    assert read.text == large.text and {sae.outlier_norm for sae in read.dictionaries.values()} == {2.5e6}


def test_a_sweep_is_a_folder_of_sets(original, tmp_path):
    for name in ("b", "a"):
        original.save(tmp_path / "sweep" / name)
    assert sets_in(tmp_path / "sweep") == [tmp_path / "sweep" / "a", tmp_path / "sweep" / "b"]
    assert sets_in(tmp_path / "sweep" / "a") == [tmp_path / "sweep" / "a"]
    with user_error("sweep", "a, b"):
        load_set(tmp_path / "sweep")
    for folder in ("gone", "."):
        with user_error(str(tmp_path / folder)):
            sets_in(tmp_path / folder)


def test_the_files_are_those_that_sae_lens_reads(original, folder):
    """SAELens 6: names, shapes and the keys without which it refuses or guesses."""
    assert set(files(folder)) == {"set.json", ".files.json"} | {
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
        replace(original, model=name, text=text).save(tmp_path / "set")
        for card in (tmp_path / "set").glob("*/cfg.json"):
            metadata = json.loads(card.read_text())["metadata"]
            assert (metadata["model_name"], metadata["dataset_path"]) == (public, "words.txt")
            assert str(tmp_path) not in card.read_text()
        loaded = load_set(tmp_path / "set")
        assert (loaded.model, loaded.text.source) == (name, str(words))


def test_a_set_says_in_which_order_its_text_was_read(original, folder, tmp_path):
    assert load_set(folder).stream_seed is None
    replace(original, stream_seed=7).save(tmp_path / "seven")
    assert load_set(tmp_path / "seven").stream_seed == 7


def test_files_can_be_read_by_others(folder):
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.rglob("*") if path.is_file())


def test_a_name_that_a_set_does_not_have_is_answered_with_the_nearest(original):
    last = FeatureId(SITES[0], original.at(SITES[0]).n_latents - 1)
    assert original.sites == sorted(SITES) and original.check_feature(last) == last
    with user_error("resid_post.1", "did you mean resid_post.0"):
        original.at(Site(1))
    with user_error("0_96", "resid_post.0 has 96", "0 to 95"):
        original.check_feature(replace(last, index=96))


def test_a_folder_may_be_text(original, folder, tmp_path):
    original.save(str(tmp_path / "text"))
    assert sets_in(str(folder)) == [folder]
    there, here = load_set(str(tmp_path / "text")), load_set(folder)
    for site in SITES:
        assert torch.equal(there.at(site).W_enc, here.at(site).W_enc)
    for wrong in ("", " ", "a\0b"):
        with user_error("file or folder"):
            load_set(wrong)
