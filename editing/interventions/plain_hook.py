"""An edit as plain PyTorch forward hooks on a Hugging Face model. Needs torch and safetensors, nothing else.

From `attach` on the model runs edited, also while it generates, until the handles are removed:

    handles = attach(AutoModelForCausalLM.from_pretrained(...))
    ...
    for handle in handles:
        handle.remove()
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

EDITS = []  # replaced when an edit is exported: module and kind of each edit


def attach(model, tensors=None):
    """Register one forward hook per edit; returns their handles. The tensors lie beside this file."""
    tensors = load_file(Path(__file__).with_suffix(".safetensors")) if tensors is None else tensors
    handles = []
    for number, card in enumerate(EDITS):
        prefix = f"{number}."
        parts = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        handles.append(model.get_submodule(card["module"]).register_forward_hook(_hook(card, parts)))
    return handles


def _hook(card, tensors):
    placed = {}  # by device, so that they move once and not with every token

    def hook(module, args, output):
        h = output[0] if isinstance(output, tuple) else output
        if h.device not in placed:
            placed[h.device] = {name: tensor.to(h.device) for name, tensor in tensors.items()}
        changed = edited(card, placed[h.device], h.float()).to(h.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


def edited(card, t, h):
    """The activation `h` [batch, pos, d] under one edit."""
    if card["kind"] == "spared":  # the activation of BOS is left alone
        apart = (h - t["anchor"]).norm(dim=-1) > card["radius"]
        return torch.where(apart[..., None], edited(card["edit"], t, h), h)
    if card["kind"] == "scaled":
        return h + card["strength"] * (edited(card["edit"], t, h) - h)
    if card["kind"] == "erasure":
        return spared(card, h - (h - t["mean"]) @ t["right"].T @ t["left"].T, h)
    if card["kind"] != "features":
        raise ValueError(f"unknown kind of edit {card['kind']!r}")
    latents = t["latents"]
    codes, directions = encode(card["dictionary"], t, h)
    change = t.get("strengths", 1.0) * (t["target"] - codes[..., latents])
    return spared(card["dictionary"], h + change @ directions[latents], h)


def spared(card, changed, h):
    """The changed activation, except for tokens of massive norm."""
    limit = card.get("outlier_norm")
    return changed if limit is None else torch.where((h.norm(dim=-1) > limit)[..., None], h, changed)


def encode(card, t, h):
    """Latent activations of `h` [batch, pos, n_latents], and the directions of the latents [n_latents, d]."""
    kind, norm = card["kind"], card.get("norm")
    if kind in ("basis", "rectified", "unmixing"):
        codes = (h - t["d.mean"]) @ (t["d.filters"] if kind == "unmixing" else t["d.directions"].T)
        return codes.relu() if kind == "rectified" else codes, t["d.directions"]
    x, unit, b_dec = h, torch.ones_like(h[..., :1]), t["d.b_dec"]
    root, means = h.shape[-1] ** 0.5, []
    if norm in ("layer norm", "centred"):
        mean = h.mean(-1, keepdim=True)
        x, means = h - mean, [mean * root]
    if norm == "layer norm":
        unit = x.std(-1, keepdim=True)
        x = x / (unit + 1e-5)
    elif norm == "rescaled":
        unit = h.norm(dim=-1, keepdim=True) / root
        x = h / unit.clamp_min(torch.finfo(h.dtype).tiny)
    elif norm not in (None, "centred"):
        raise ValueError(f"unknown normalisation {norm!r}")
    codes = unit * _activated(card, t, (x - b_dec) @ t["d.W_enc"] + t.get("d.b_enc", 0.0))
    directions = t["d.W_dec"]
    if norm:  # what was taken out of h are latents of their own: its scale, along b_dec, and its mean
        axis = b_dec / b_dec.norm() if b_dec.any() else torch.eye(len(b_dec)).to(b_dec)[0]
        rows = [axis] + [torch.full_like(b_dec, 1 / root)] * len(means)
        codes = torch.cat([codes, unit * b_dec.norm(), *means], -1)
        directions = torch.cat([directions, torch.stack(rows)])
    return codes, directions


def _activated(card, t, pre):
    """Latent activations from what they are before it, by the kind of autoencoder."""
    kind = card["kind"]
    if kind == "topk":
        values, indices = pre.topk(card["k"], dim=-1)
        values = values.relu() * t["d.gain"][indices] if "d.gain" in t else values.relu()
        return torch.zeros_like(pre).scatter(-1, indices, values)
    if kind == "jumprelu":
        return pre * (pre > t["d.threshold"].clamp_min(0))
    if kind == "gated":
        return (pre + t["d.b_gate"] > 0) * (t["d.r_mag"].exp() * pre + t["d.b_mag"]).relu()
    if kind == "relu":
        return pre.relu()
    raise ValueError(f"unknown kind of dictionary {kind!r}")
