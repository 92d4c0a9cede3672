"""The direct path from the residual to the logits: through the last norm, with its scale held fixed."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.model.language_model import LanguageModel


@torch.enable_grad()
def direct_weights(
    model: LanguageModel,
    h: Float[Tensor, "rows d_model"],
    read: Callable[[Float[Tensor, "rows vocab"]], Float[Tensor, "rows"]],
) -> Float[Tensor, "rows d_model"]:
    """w, for each final residual h: what writes `delta` into it adds w . delta to what `read` makes of the logits.

        norm(h) = gain P h / s(h) + offset,   s(h) = sqrt(mean (P h)^2 + eps)
        w = d/dh read(W_U (gain P h / s + offset))   with s held at s(h)

    P takes the mean out (LayerNorm) or is the identity (RMSNorm). `read` is a sum of logits with weights, so that w is
    exact however large delta is, and what is written by all parts adds up; where the model caps its logits, w is the
    derivative through the cap. norm(x) - offset is multiplied by s(x) / s(h), so that its
    derivative has no part from the scale.
    """
    x, s = h.detach().requires_grad_(), _scale(model, h.detach())[:, None]
    norm: Any = model.bridge.ln_final
    offset = norm(torch.zeros_like(x[:1, None]).to(model.dtype))
    normed = offset + (norm(x[:, None].to(model.dtype)) - offset) * (_scale(model, x)[:, None] / s)[..., None].to(
        model.dtype
    )
    logits = model.bridge.adapter.apply_output_logits_transform(model.bridge.unembed(normed))[:, 0]
    (weights,) = torch.autograd.grad(read(logits.to(h.dtype)).sum(), x)
    return weights


def _scale(model: LanguageModel, h: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows"]:
    """s(h), what the last norm divides by."""
    norm, config = model.bridge.ln_final, model.bridge.cfg
    keeps_mean = getattr(norm, "uses_rms_norm", config.normalization_type != "LN")
    centred = h if keeps_mean else h - h.mean(-1, keepdim=True)
    module = norm.original_component
    eps = getattr(module, "eps", None) or getattr(module, "variance_epsilon", config.eps)
    return (centred.square().mean(-1) + eps).sqrt()
