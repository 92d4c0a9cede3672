"""Attention in one fused step where contexts are long.

The library computes softmax(q k^T / sqrt(d_head)) v in parts, for hooks on scores and patterns that nothing here sets.
Transformers' own modules, which it wraps, do it without the matrix of scores (`sdpa`). Tokens per second against plain
Transformers, 13 blocks of SmolLM2-135M on one core: 0.93 in parts and 1.00 fused at 128 tokens per context, 0.77 and
0.99 at 512, 0.51 and 0.97 at 1024. Activations are equal up to rounding (1e-6). Prompts keep the parts, and so do
models that read no more than a few hundred tokens, whose digits are older than this.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sae_core.model.probe import same
from sae_core.sites import Site, Stream

N_POS = 8
LONG = 64
"""Positions from which on a context is long."""
SHORT_MODEL = 256
"""Models that read no more positions than this have no long contexts."""


@runtime_checkable
class Fusible(Protocol):
    """What is asked of a language model."""

    bridge: Any
    device: torch.device
    n_ctx: int

    @property
    def dtype(self) -> torch.dtype:
        """In which precision it computes."""
        ...

    def record(self, tokens: Tensor, sites: Iterable[Site]) -> dict[Site, Tensor]:
        """Activations at `sites`."""
        ...

    def offered(self, stream: Stream) -> list[Site]:
        """The sites of a stream that can be used."""
        ...


@contextmanager
def fused_attention(bridge: Any) -> Iterator[None]:
    """In the block, attention is that of the wrapped modules; its output still passes its hook point."""
    config, attentions = bridge.original_model.config, [block.attn for block in bridge.blocks]
    implementation = config._attn_implementation
    config._attn_implementation = "sdpa"
    for attention in attentions:

        def forward(*args: Any, attention: Any = attention, **kwargs: Any) -> Any:
            output = attention.original_component(*args, **kwargs)
            if isinstance(output, tuple):
                return attention.hook_out(output[0]), *output[1:]
            return attention.hook_out(output)

        attention.__dict__["forward"] = forward
    try:
        yield
    finally:
        config._attn_implementation = implementation
        for attention in attentions:
            attention.__dict__.pop("forward", None)


def fused_from(model: Fusible) -> int | None:
    """Positions from which on contexts of this model are long; None where its attention is not to be fused."""
    return LONG if model.n_ctx > SHORT_MODEL and fuses(model) else None


@torch.no_grad()
def fuses(model: Fusible) -> bool:
    """Whether all sites are recorded alike with fused attention: wrappers change GPT-J, and hide the heads of GPT-2."""
    tokens = torch.arange(N_POS, device=model.device)[None]
    deep = model.dtype is torch.float32  # in half precision rounding grows from block to block
    sites = [site for stream in Stream for site in model.offered(stream) if deep or site.layer < 2]
    in_parts = model.record(tokens, sites)
    try:
        with fused_attention(model.bridge):
            fused = model.record(tokens, sites)
    except Exception:  # whatever a wrapped module raises where its wrapper has taken it apart
        return False
    return fused.keys() == in_parts.keys() and all(same(fused[site], in_parts[site], model.dtype) for site in sites)
