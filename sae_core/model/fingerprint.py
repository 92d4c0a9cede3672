"""By what a model is known again: a hash of its architecture and weights."""

import hashlib
from typing import Any

import torch
from torch import nn

_COLUMNS = 1009
"""Of the numbers of a weight each counts by its place among so many."""


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


def weights_digest(model: nn.Module) -> str:
    """A short hash of two sums of the bits of every weight: any edit of one shows, where a fingerprint samples.

    Sums of integers, so that no order and no number of threads changes them; other precisions have other bits.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().flatten()
        bits = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}.get(flat.element_size(), torch.uint8))
        whole = len(bits) // _COLUMNS * _COLUMNS
        columns = bits[:whole].view(-1, _COLUMNS).sum(0, dtype=torch.int64)
        columns[: len(bits) - whole] += bits[whole:]
        position = torch.arange(1, _COLUMNS + 1, device=bits.device)
        digest.update(
            f"{name} {tuple(weight.shape)} {columns.sum().item()} {(columns * position).sum().item()}".encode()
        )
    return digest.hexdigest()[:16]
