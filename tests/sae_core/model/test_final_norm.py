"""The direct path to the logits: linear, and what the model's own norm gives once its scale is put right."""

import torch
from comparing import close
from handmade import normal

from sae_core.model.final_norm import direct_weights


def scale(kind: str, h: torch.Tensor) -> torch.Tensor:
    centred = h if kind == "llama" else h - h.mean(-1, keepdim=True)
    return (centred.square().mean(-1) + (1e-6 if kind == "llama" else 1e-5)).sqrt()


def test_it_is_what_the_norm_does_with_its_scale_held(tiny, kind):
    """read(logits(h + delta)) - read(logits(0)) is that of h and of delta together, on the scale of h + delta."""
    h, delta, zero = normal(4, 32, seed=1), 3 * normal(4, 32, seed=2), torch.zeros(4, 32)
    weights = direct_weights(tiny, h, lambda logits: logits[:, 3] - logits.mean(-1))

    def scaled(x: torch.Tensor) -> torch.Tensor:
        logits = tiny.unembed(x) - tiny.unembed(zero)
        return (logits[:, 3] - logits.mean(-1)) * scale(kind, x)

    expected = (scaled(h + delta) - scaled(h)) / scale(kind, h)
    close((weights * delta).sum(-1), expected, 1e-3)
    close((weights * h).sum(-1), scaled(h) / scale(kind, h), 1e-3)


def test_the_norm_left_alone_gives_something_else(tiny):
    """Control: with its scale free the norm takes most of a large change back."""
    h, delta = normal(4, 32, seed=1), 3 * normal(4, 32, seed=2)
    weights = direct_weights(tiny, h, lambda logits: logits[:, 3] - logits.mean(-1))
    moved = tiny.unembed(h + delta) - tiny.unembed(h)
    moved = moved[:, 3] - moved.mean(-1)
    assert ((weights * delta).sum(-1) - moved).abs().max() > 0.1
