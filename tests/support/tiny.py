"""Small stand-ins for the tests: random language models on disk, edits, and what an error must look like."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_core.errors import UserError
from sae_core.sites import Site

KINDS = ("neox", "gpt2", "llama")


def tiny_config(kind: str, n_vocab: int, **overrides):
    """Three layers of width 32: a parallel block with partial rotation, learned positions, or grouped queries."""
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig

    ends = {"vocab_size": n_vocab, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
    width = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
    if kind == "neox":
        shape = {"intermediate_size": 64, "rotary_pct": 0.25, "use_parallel_residual": True}
        return GPTNeoXConfig(**(ends | width | shape | overrides))
    if kind == "llama":
        shape = {"intermediate_size": 64, "num_key_value_heads": 2}
        return LlamaConfig(**(ends | width | shape | overrides))
    shape = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "n_inner": 64}
    return GPT2Config(**(ends | shape | overrides))


def write_tiny(folder: Path, kind: str, *, seed: int = 0, **overrides) -> Path:
    """Write a random language model with its tokenizer into `folder`, in Hugging Face layout.

    Matrices are drawn at standard deviation 0.25: at the usual 0.02 attention is uniform, and a lost
    rotary embedding would pass every test.
    """
    from transformers import AutoModelForCausalLM

    from sae_core.storybook.train import build_tokenizer

    tokenizer = build_tokenizer()
    model = AutoModelForCausalLM.from_config(tiny_config(kind, len(tokenizer), **overrides))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            is_gain = weight.ndim == 1 and name.endswith("weight")
            weight.copy_(1 + 0.1 * noise if is_gain else 0.25 * noise)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_tokens(n_vocab: int, *shape: int, seed: int = 0) -> Tensor:
    """Content tokens: neither END (0) nor the unknown word (1)."""
    return torch.randint(2, n_vocab, shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Edit:
    """The smallest `Intervention`: a site and a function."""

    site: Site
    change: Callable[[Tensor], Tensor]

    def __call__(self, h: Tensor) -> Tensor:
        return self.change(h)


@contextmanager
def user_error(*words: str) -> Iterator[None]:
    """The block must raise a `UserError` of one line that holds all of `words`."""
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert message.strip() and "\n" not in message, message
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"
