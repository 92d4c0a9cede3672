"""Other people's files, written as their libraries write them."""

import json
from pathlib import Path

import numpy as np
import torch
from handmade import normal
from safetensors.torch import save_file
from torch import Tensor

D, N, K = 12, 40, 5


def tensors(*, unit: bool = False, d_in: int = D, seed: int = 0) -> dict[str, Tensor]:
    """W_enc, b_enc, W_dec, b_dec and a threshold, with decoder norms between 0.3 and 3 unless `unit`."""
    W_dec = torch.nn.functional.normalize(normal(N, d_in, seed=seed), dim=-1)
    if not unit:
        W_dec *= (0.3 * 10 ** torch.linspace(0, 1, N))[:, None]
    return {
        "W_enc": 0.3 * normal(d_in, N, seed=seed + 1),
        "b_enc": 0.3 * normal(N, seed=seed + 2),
        "W_dec": W_dec,
        "b_dec": 0.5 * normal(d_in, seed=seed + 3),
        "threshold": 0.4 * normal(N, seed=seed + 4).abs(),
    }


def write(folder: Path, name: str, values: dict[str, Tensor], card: dict | None = None, *, at="cfg.json") -> Path:
    """A folder as another tool writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        save_file({key: value.contiguous() for key, value in values.items()}, folder / name)
    elif name.endswith(".npz"):
        np.savez(folder / name, **{key: value.numpy() for key, value in values.items()})
    else:
        torch.save(values, folder / name)
    if card is not None:
        (folder / at).write_text(json.dumps(card))
    return folder


METADATA = {
    "sae_lens_version": "6.54.12",
    "model_name": "pythia-70m",
    "hook_name": "blocks.2.hook_resid_post",
    "hook_head_index": None,
    "prepend_bos": False,
    "context_size": 64,
}


def sae_lens_card(architecture: str, **more) -> dict:
    return {
        "architecture": architecture,
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": METADATA,
    } | more


def without(values: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if name not in names}


def linear(bias: str = "bias", *, d_in: int = D) -> dict[str, Tensor]:
    w = tensors(d_in=d_in)
    values = {
        "encoder.weight": w["W_enc"].T.clone(),
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T.clone(),
    }
    return values | {bias: w["b_dec"]}
