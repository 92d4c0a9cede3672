"""Gemma Scope files, against a few lines in float64."""

import pytest
import torch
from foreign_files import D, X, check, tensors, w64, write
from tiny import user_error
from torch import Tensor

from sae_core.formats.readers import load_foreign
from sae_core.sites import Site, Stream


def gemma_reference(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    w = w64(values)
    pre = X @ w["W_enc"] + w["b_enc"]
    g = pre.relu() * (pre > w["threshold"])
    return g, g @ w["W_dec"] + w["b_dec"]


@pytest.mark.parametrize("name", ["params.npz", "params.safetensors"])
def test_gemma_scope(tmp_path, name):
    values = tensors()
    g, x_hat = gemma_reference(values)
    if name == "params.npz":
        folder = write(tmp_path / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71", name, values)
        model = "google/gemma-2-2b"
    else:
        values = {key.replace("W_", "w_"): value for key, value in values.items()}
        card = {
            "architecture": "jump_relu",
            "model_name": "gemma-v3-270m-pt",
            "hf_hook_point_in": "model.layers.20.output",
        }
        folder = write(tmp_path / "resid_post" / "layer_20_width_16k_l0_small", name, values, card, at="config.json")
        model = "gemma-v3-270m-pt"
    for path in (folder, folder / name):
        foreign = load_foreign(path)
        check(foreign.dictionary, g, x_hat, norms=tensors()["W_dec"].double().norm(dim=-1))
        assert (foreign.format, foreign.site, foreign.model_name) == ("Gemma Scope", Site(20), model)
        assert (foreign.prepend_bos, foreign.n_ctx) == (True, 1024)


def test_gemma_scope_by_its_folder(tmp_path):
    values = tensors()
    assert load_foreign(write(tmp_path / "layer_20", "params.npz", values)).site is None  # which stream is not said
    place = tmp_path / "gemma-scope-9b-it-mlp" / "layer_3" / "width_16k"
    foreign = load_foreign(write(place, "params.npz", values))
    assert (foreign.site, foreign.model_name) == (Site(3, Stream.MLP_OUT), "google/gemma-2-9b-it")
    heads = tmp_path / "gemma-scope-2b-pt-att" / "layer_3" / "width_16k"
    assert load_foreign(write(heads, "params.npz", values)).site == Site(3, Stream.ATTN_Z)
    for folder, word in (
        ("gemma-scope-2b-pt-transcoders/layer_3", "transcoder"),
        ("gemma-scope-2b-pt-res/embedding/width_4k", "embedding"),
        ("attn_out/layer_3_width_16k", "attn_out"),
    ):
        with user_error(word, "no site here"):
            load_foreign(write(tmp_path / folder, "params.npz", values))
    for hook, place in (
        ("model.layers.3.post_feedforward_layernorm.output", "model.layers.3.post_feedforward_layernorm"),
        ("model.layers.3.self_attn.o_proj.input", "model.layers.3.self_attn.o_proj.input"),
    ):
        card = {"architecture": "jump_relu", "hf_hook_point_in": hook}
        foreign = load_foreign(write(tmp_path / "any", "params.npz", values, card))
        assert foreign.place == place
    assert foreign.site == Site(3, Stream.ATTN_Z)
    with user_error("hf_hook_point_in = 3", "folder = 4"):
        load_foreign(write(tmp_path / "resid_post" / "layer_4_width_16k", "params.npz", values, card))
    affine = {key.replace("W_", "w_"): value for key, value in values.items()} | {
        "affine_skip_connection": torch.eye(D)
    }
    with user_error("affine_skip_connection"):
        load_foreign(write(tmp_path / "affine", "params.safetensors", affine))
