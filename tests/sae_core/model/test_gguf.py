"""A GGUF file is the model whose weights it holds; which file is meant is never guessed."""

import importlib.util

import pytest
import torch
from comparing import close
from families import write_family
from safetensors.torch import load_file
from tiny import user_error

from sae_core.model.hub import model_source
from sae_core.model.language_model import load_model

NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}
HEADS = {"attn_q": 4, "attn_k": 2}


def gguf_name(key: str) -> str:
    for long, short in NAMES.items():
        key = key.replace(long, short)
    return key


def write_gguf(path, weights):
    """A Llama of `write_family`'s shape as llama.cpp's converter writes it: rotary halves of q and k interleaved."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_embedding_length(32)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(70)
    writer.add_tokenizer_model("llama")
    tokens = ["<s>", "</s>", "<unk>", *(chr(ord("A") + i) for i in range(67))]
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(70)])
    writer.add_token_types([3, 3, 2] + [1] * 67)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    for key, weight in weights.items():
        name = gguf_name(key)
        heads = next((n for part, n in HEADS.items() if f".{part}." in name), None)
        if heads:
            weight = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(name, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_has_the_logits_of_its_weights(tmp_path):
    folder = write_family(tmp_path / "llama", "Llama")
    path = tmp_path / "file" / "model.gguf"
    path.parent.mkdir()
    weights = load_file(folder / "model.safetensors")
    write_gguf(path, weights)
    tokens = torch.arange(3, 13)[None]
    expected = load_model(folder, device="cpu").logits(tokens)
    read = load_model(path, device="cpu")
    close(read.logits(tokens), expected, 1e-4)
    close(load_model(path.parent, device="cpu").logits(tokens), expected, 1e-4)
    assert read.bos_id == 0


def test_which_file_is_meant_is_not_guessed(tmp_path):
    with user_error("no config.json", "no .gguf"):
        model_source(tmp_path)
    (tmp_path / "a.gguf").touch()
    assert model_source(tmp_path) == model_source(str(tmp_path / "a.gguf")) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with user_error("several models", "a.gguf, b.gguf"):
        model_source(tmp_path)
    assert model_source(tmp_path / "b.gguf") == tmp_path / "b.gguf"
    (tmp_path / "config.json").touch()
    assert model_source(tmp_path) == tmp_path
    with user_error("no model directory", "c.gguf"):
        model_source("c.gguf")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").touch()
    find = importlib.util.find_spec
    monkeypatch.setattr("sae_core.model.checkpoint.find_spec", lambda name: None if name == "gguf" else find(name))
    with user_error("a.gguf", "pip install gguf"):
        load_model(tmp_path, device="cpu")
