"""Tiny random checkpoints of the families of models that people bring, in Hugging Face layout."""

from pathlib import Path
from typing import Any

import torch

from sae_core.model.padding import pad  # noqa

N_WORDS = 60
_SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_PLACES = {"max_position_embeddings": 64}
_GROUPED = {"num_key_value_heads": 2}
_HEADS = {"head_dim": 8}
_WINDOW = {"sliding_window": 6}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 6,
            **_PLACES,
        },
    ),
    "gptj": ("GPTJConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}),
    "neox": ("GPTNeoXConfig", {**_SIZE, **_PLACES, "rotary_pct": 0.25}),
    "opt": (
        "OPTConfig",
        {
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 32,
            **_PLACES,
        },
    ),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("MptConfig", {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 64}),
    "xglm": ("XGLMConfig", {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, **_PLACES}),
    "falcon": ("FalconConfig", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "falcon_alibi": (
        "FalconConfig",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True, "parallel_attn": False},
    ),
    "llama": ("LlamaConfig", {**_SIZE, **_PLACES, **_GROUPED}),
    "mistral": ("MistralConfig", {**_SIZE, **_PLACES, **_GROUPED, **_WINDOW}),
    "mixtral": ("MixtralConfig", {**_SIZE, **_PLACES, **_GROUPED, "num_local_experts": 4}),
    "qwen2": ("Qwen2Config", {**_SIZE, **_PLACES, **_GROUPED}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            **_SIZE,
            **_PLACES,
            **_GROUPED,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "qwen3": ("Qwen3Config", {**_SIZE, **_PLACES, **_GROUPED, **_HEADS}),
    "gemma": ("GemmaConfig", {**_SIZE, **_PLACES, **_GROUPED, **_HEADS}),
    "gemma2": ("Gemma2Config", {**_SIZE, **_PLACES, **_GROUPED, **_HEADS, **_WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", {**_SIZE, **_PLACES, **_GROUPED, **_HEADS, **_WINDOW, "query_pre_attn_scalar": 8}),
    "phi": ("PhiConfig", {**_SIZE, **_PLACES}),
    "phi3": ("Phi3Config", {**_SIZE, **_PLACES, **_GROUPED}),
    "olmo": ("OlmoConfig", {**_SIZE, **_PLACES}),
    "olmo2": ("Olmo2Config", {**_SIZE, **_PLACES}),
    "olmo3": ("Olmo3Config", {**_SIZE, **_PLACES, **_GROUPED, **_WINDOW}),
    "granite": (
        "GraniteConfig",
        {
            **_SIZE,
            **_PLACES,
            **_GROUPED,
            "residual_multiplier": 0.22,
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
        },
    ),
    "glm4": ("Glm4Config", {**_SIZE, **_PLACES, **_GROUPED, **_HEADS}),
    "stablelm": ("StableLmConfig", {**_SIZE, **_PLACES, **_GROUPED}),
    "cohere": ("CohereConfig", {**_SIZE, **_PLACES, **_GROUPED}),
    "smollm3": ("SmolLM3Config", {**_SIZE, **_PLACES, **_GROUPED}),
    "starcoder2": ("Starcoder2Config", {**_SIZE, **_PLACES, **_GROUPED}),
    "gpt_bigcode": ("GPTBigCodeConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
}


def write_family(folder: Path, family: str, *, bos: bool = True, seed: int = 0, **overrides) -> Path:
    import transformers
    from transformers import AutoModelForCausalLM

    tokenizer = words_tokenizer(bos=bos)
    name, shape = FAMILIES[family]
    ids = {"bos_token_id": 0 if bos else None, "eos_token_id": 1, "pad_token_id": 1}
    config = getattr(transformers, name)(vocab_size=N_WORDS + 10, **(ids | shape | overrides))
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            is_gain = weight.ndim == 1 and key.endswith("weight")
            weight.copy_(1 + 0.1 * noise if is_gain else 0.25 * noise)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def words_tokenizer(*, bos: bool = True):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", *(f"w{i}" for i in range(N_WORDS - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    first = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", **first)
