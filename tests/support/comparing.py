"""What tests of edited runs compare with: closeness, the hooks left behind, activations read by plain hooks."""

import torch

from sae_core.sites import Site, Stream


def reference_points(reference) -> dict[Site, tuple[torch.nn.Module, bool]]:
    """Where each site is in the plain model: a module, and whether its input is meant."""
    points = {}
    kind = reference.config.model_type
    base = {"gpt_neox": "gpt_neox", "gpt2": "transformer", "llama": "model"}[kind]
    attention, mixing, output = {
        "gpt_neox": ("attention", "dense", "dense_4h_to_h"),
        "gpt2": ("attn", "c_proj", "c_proj"),
        "llama": ("self_attn", "o_proj", "down_proj"),
    }[kind]
    body = getattr(reference, base)
    for layer, block in enumerate(body.h if kind == "gpt2" else body.layers):
        points[Site(layer, Stream.RESID_POST)] = block, False
        points[Site(layer, Stream.ATTN_Z)] = getattr(getattr(block, attention), mixing), True
        points[Site(layer, Stream.ATTN_OUT)] = getattr(block, attention), False
        points[Site(layer, Stream.MLP_OUT)] = block.mlp, False
        points[Site(layer, Stream.MLP_HIDDEN)] = getattr(block.mlp, output), True
    return points


def n_hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.bridge.modules())


def close(a, b, tolerance=1e-5):
    """Equal up to float32 rounding of numbers as large as those in `b`."""
    assert a.shape == b.shape
    assert (a - b).abs().max().item() <= tolerance * max(1.0, b.abs().max().item())
