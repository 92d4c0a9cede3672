"""By what a model is known again: a hash of its architecture and weights."""

import hashlib
from typing import Any

from torch import nn


def fingerprint_of(config: Any, model: nn.Module) -> str:
    """A short hash of the architecture in TransformerLens' words, and of about 512 numbers of every weight.

    Equal on every device and in every precision that holds the same numbers.
    """
    rope = getattr(model.config, "rope_parameters", None)
    shape = (config.n_layers, config.d_model, config.d_vocab, config.n_heads, config.n_key_value_heads, config.act_fn)
    parallel = bool(getattr(config, "parallel_attn_mlp", False))
    rest = (config.normalization_type, config.eps, config.positional_embedding_type, parallel)
    digest = hashlib.sha256(repr((shape, rest, sorted((rope or {}).items()))).encode())
    for name, weight in sorted(model.state_dict().items()):
        sample = weight.detach().flatten()[:: max(1, weight.numel() // 512)].float().cpu()
        digest.update(f"{name.replace('_original_component.', '')} {tuple(weight.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]
