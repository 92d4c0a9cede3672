"""Passes through a part of the blocks: ended early, or begun late without running those below."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Halt(Exception):
    """Raised inside a forward pass when all that is wanted of it is known."""


@contextmanager
def skipped(bridge: Any, n_blocks: int, h: Float[Tensor, "batch pos d_model"], *, as_tuple: bool) -> Iterator[None]:
    """In the block, the first `n_blocks` return the residual `h` without running.

    `forward` goes into the instance dictionary because the library redirects plain attribute assignment to the wrapped
    Hugging Face module, where it would stay. The library passes `h` on too, but not in all families: in BLOOM it comes
    through the norm behind the embedding.
    """
    blocks, output = list(bridge.blocks[:n_blocks]), (h,) if as_tuple else h
    for block in blocks:
        block.__dict__["forward"] = lambda *args, **kwargs: output
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def returns_tuples(bridge: Any, device: torch.device) -> bool:
    """Whether blocks return the residual in a tuple (BLOOM), seen in a pass that ends after the first."""
    outputs = []

    def halt(module: nn.Module, args: Any, output: Any) -> None:
        outputs.append(output)
        raise Halt

    handle = bridge.blocks[0].register_forward_hook(halt)
    with suppress(Halt):
        bridge(torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    handle.remove()
    return isinstance(outputs[0], tuple)
