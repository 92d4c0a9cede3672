"""Files that are not what they should be: one line each."""

from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import (
    METADATA,
    SPARSIFY,
    D,
    N,
    dl_card,
    linear,
    openai_values,
    sae_lens,
    sae_lens_card,
    sparsify_values,
    tensors,
    without,
    write,
)
from handmade import normal
from tiny import user_error

from sae_core import files
from sae_core.formats.readers import load_foreign


def test_there_must_be_one_dictionary(tmp_path):
    with user_error(str(tmp_path / "gone"), "no file or folder"):
        load_foreign(tmp_path / "gone")
    with user_error(str(tmp_path), "holds no dictionary", "sae_weights.safetensors"):
        load_foreign(tmp_path)
    write(tmp_path / "layers.0", "sae.safetensors", sparsify_values(), SPARSIFY)
    with user_error(str(tmp_path / "layers.0"), "one of the folders"):
        load_foreign(tmp_path)
    write(tmp_path / "layers.0", "ae.pt", linear())
    with user_error("sae.safetensors and ae.pt"):
        load_foreign(tmp_path / "layers.0")


@pytest.mark.parametrize("length", [0, 4, 100, -8])
@pytest.mark.parametrize("name", ["sae.safetensors", "params.npz", "ae.pt"])
def test_a_truncated_file(tmp_path, name, length):
    values = {"sae.safetensors": sparsify_values(), "params.npz": tensors(), "ae.pt": linear()}[name]
    write(tmp_path, name, values, SPARSIFY)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:length])
    with user_error(str(path), "damaged"):
        load_foreign(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_a_damaged_card(tmp_path, content):
    write(tmp_path, "sae.safetensors", sparsify_values(), SPARSIFY)
    (tmp_path / "cfg.json").write_bytes(content)
    with user_error(str(tmp_path), "cfg.json", "damaged"):
        load_foreign(tmp_path)


@pytest.mark.parametrize("junk", [None, 3, "words", [], {}, {"x": 1}])
def test_a_card_of_other_types(tmp_path, junk):
    """Whatever stands where an object, a name or a number should be, there is one line or a dictionary."""
    keys = ("metadata", "architecture", "activation_fn", "activation_fn_kwargs", "normalize_activations", "k", "d_in")
    values = without(tensors(), "threshold")
    for key in (*keys, "reshape_activations", "apply_b_dec_to_input", "finetuning_scaling_factor"):
        folder = sae_lens(tmp_path / key, values, sae_lens_card("standard") | {key: junk})
        survives(folder)
    for key in (
        "hook_name",
        "hook_name_out",
        "model_name",
        "prepend_bos",
        "context_size",
        "model_from_pretrained_kwargs",
    ):
        card = sae_lens_card("standard") | {"metadata": METADATA | {key: junk}}
        survives(sae_lens(tmp_path / key, values, card))
    for key in ("trainer", "buffer"):
        survives(write(tmp_path / key, "ae.pt", linear(), dl_card("AutoEncoder") | {key: junk}, at="config.json"))
    for key in ("dict_class", "submodule_name", "k", "lm_name"):
        survives(write(tmp_path / key, "ae.pt", linear(), dl_card("AutoEncoder", **{key: junk}), at="config.json"))
    survives(write(tmp_path / "openai", "3.pt", openai_values() | {"activation": junk}) / "3.pt")
    survives(write(tmp_path / "openai", "3.pt", openai_values() | {"activation_state_dict": junk}) / "3.pt")


def survives(path: Path) -> None:
    try:
        load_foreign(path)
    except files.UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"W_enc": normal(D, N - 1)}, ("W_enc", f"[{D}, {N - 1}]", f"[{D}, {N}]")),
        ({"W_enc": normal(N, D)}, ("W_enc", f"[{N}, {D}]", f"[{D}, {N}]")),
        ({"b_dec": normal(D + 1)}, ("b_dec", f"[{D + 1}]", f"[{D}]")),
        ({"b_enc": normal(1, N)}, ("b_enc", f"[1, {N}]", f"[{N}]")),
        ({"W_dec": normal(N)}, ("W_dec", f"[{N}]", "[any, any]")),
        ({"b_enc": torch.full((N,), float("nan"))}, ("b_enc", "NaN")),
        ({"W_dec": torch.full((N, D), float("inf"))}, ("W_dec", "infinity")),
        ({"W_other": normal(D)}, ("W_other", "cannot be represented")),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, wrong, words):
    values = without(tensors(), "threshold")
    sae_lens(tmp_path, values | wrong, sae_lens_card("standard"))
    with user_error(str(tmp_path), *words):
        load_foreign(tmp_path)
    for name in values:
        sae_lens(tmp_path, without(values, name), sae_lens_card("standard"))
        with user_error(str(tmp_path), f"{name} is missing"):
            load_foreign(tmp_path)


class Thing:
    """What only a full unpickling could make."""


@pytest.mark.filterwarnings("ignore:.*pickle")
def test_nothing_that_needs_more_than_tensors_is_loaded(tmp_path):
    torch.save(linear() | {"config": Thing()}, tmp_path / "ae.pt")
    with user_error(str(tmp_path / "ae.pt"), "not loaded"):
        load_foreign(tmp_path)
    torch.save([1, 2], tmp_path / "ae.pt")
    with user_error("list"):
        load_foreign(tmp_path)
    (tmp_path / "ae.pt").unlink()
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with user_error(str(tmp_path / "params.npz"), "damaged"):
        load_foreign(tmp_path)
    np.savez(tmp_path / "params.npz", W_enc=np.array(["text"]))
    with user_error(str(tmp_path / "params.npz"), "damaged"):
        load_foreign(tmp_path)


def test_unknown_schemas(tmp_path):
    with user_error("schema", "weight", "no cfg.json"):
        load_foreign(write(tmp_path / "a", "sae.safetensors", {"weight": normal(3, 3)}))
    with user_error("schema"):
        load_foreign(write(tmp_path / "b", "sae.safetensors", without(tensors(), "threshold"), {"l1": 0.1}))
    # Llama Scope: names like AutoEncoderNew's, but a JumpReLU with its numbers in hyperparams.json
    with user_error("schema", "encoder.weight"):
        load_foreign(write(tmp_path / "c", "final.safetensors", linear("decoder.bias")) / "final.safetensors")
