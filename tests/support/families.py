"""Tiny random checkpoints of the families of models that people bring, in Hugging Face layout.

Two layers of width 32; norms are random, embeddings have rows beyond the tokenizer, windows are shorter than contexts.
"""

from pathlib import Path
from typing import Any

import torch

N_WORDS = 60
"""Tokens of the tokenizer: `<s>`, `</s>`, `<unk>`, `w0`, `w1`, ..."""

_OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_DEPTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_NEW = _DEPTH | {"intermediate_size": 48, "max_position_embeddings": 64}
_GROUPED = _NEW | {"num_key_value_heads": 2}
_GEMMA = _GROUPED | {"head_dim": 8}
_WINDOW = {"sliding_window": 6}
_EXPERTS = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2", _OLD),
    "GPT-J": ("GPTJ", _OLD | {"rotary_dim": 4}),
    "GPT-BigCode": ("GPTBigCode", _OLD),
    "GPT-Neo": (
        "GPTNeo",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64, "window_size": 6}
        | {"attention_types": [[["global", "local"], 1]]},
    ),
    "GPT-NeoX, Pythia": ("GPTNeoX", _NEW | {"rotary_pct": 0.25}),
    "OPT": ("OPT", _DEPTH | {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64}),
    "BLOOM": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "MPT": ("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 64}),
    "XGLM": (
        "XGLM",
        {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 64},
    ),
    "Falcon": ("Falcon", _DEPTH),
    "Falcon with ALiBi": ("Falcon", _DEPTH | {"alibi": True, "parallel_attn": False}),
    "Llama": ("Llama", _GROUPED),
    "Mistral": ("Mistral", _GROUPED | _WINDOW),
    "Mixtral": ("Mixtral", _GROUPED | {"num_local_experts": 4}),
    "Qwen 2": ("Qwen2", _GROUPED),
    "Qwen 2 MoE": ("Qwen2Moe", _GROUPED | _EXPERTS | {"num_experts": 4, "num_experts_per_tok": 2}),
    "Qwen 3": ("Qwen3", _GEMMA),
    "Gemma": ("Gemma", _GEMMA),
    "Gemma 2": ("Gemma2", _GEMMA | _WINDOW | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}),
    "Gemma 3": ("Gemma3Text", _GEMMA | _WINDOW | {"query_pre_attn_scalar": 8}),
    "Phi": ("Phi", _NEW),
    "Phi 3": ("Phi3", _GROUPED),
    "OLMo": ("Olmo", _NEW),
    "OLMo 2": ("Olmo2", _NEW),
    "OLMo 3": ("Olmo3", _GROUPED | _WINDOW),
    "Granite": (
        "Granite",
        _GROUPED | {"residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 8.0},
    ),
    "GLM-4": ("Glm4", _GEMMA),
    "StableLM": ("StableLm", _GROUPED),
    "Cohere": ("Cohere", _GROUPED),
    "SmolLM 3": ("SmolLM3", _GROUPED),
    "StarCoder 2": ("Starcoder2", _GROUPED),
}
"""By the name in the documents: the configuration's class without "Config", and its values."""


def write_family(folder: Path, family: str, *, bos: bool = True, **overrides) -> Path:
    """Write a random model of a family, and a tokenizer of words with or without BOS (0); the end is 1."""
    import transformers

    name, shape = FAMILIES[family]
    ids = {"vocab_size": N_WORDS + 10, "bos_token_id": 0 if bos else None, "eos_token_id": 1, "pad_token_id": 1}
    config = getattr(transformers, f"{name}Config")(**(ids | shape | overrides))
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            is_gain = weight.ndim == 1 and key.endswith("weight")
            weight.copy_(1 + 0.1 * noise if is_gain else 0.25 * noise)
    model.save_pretrained(folder)
    words_tokenizer(bos=bos).save_pretrained(folder)
    return folder


def words_tokenizer(*, bos: bool = True):
    """A tokenizer of words between spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", *(f"w{i}" for i in range(N_WORDS - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    first = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", **first)
