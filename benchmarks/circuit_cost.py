"""What some work takes: position-layer-forwards, counted by hooks on a model's blocks, and seconds."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from torch import nn

from sae_core.model.block import block_of
from sae_core.model.language_model import LanguageModel


@dataclass(frozen=True)
class Cost:
    """What some work took."""

    forwards: float = 0.0
    """Position-layer-forwards."""
    wall: float = 0.0
    cpu: float = 0.0
    """Seconds, as is `wall`."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.forwards + other.forwards, self.wall + other.wall, self.cpu + other.cpu)

    def scaled(self, forwards: float) -> "Cost":
        """What so many position-layer-forwards take, at the same rate."""
        factor = forwards / self.forwards
        return Cost(forwards, factor * self.wall, factor * self.cpu)


def measured(model: LanguageModel, run: Callable[[], object]) -> tuple[object, Cost]:
    """What `run` returns, and what it took."""
    rows: dict[nn.Module, int] = {}
    shares: dict[nn.Module, float] = {}

    def count(module, args, out) -> None:
        out = out[0] if isinstance(out, tuple) else out
        rows[module] = rows.get(module, 0) + out.numel() // out.shape[-1]

    with ExitStack() as undo:
        for block in [block_of(model, layer, 1) for layer in range(model.n_layers)]:
            parts = [block.q, block.k, block.v, block.o, block.mlp]
            sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
            for part, size in zip(parts, sizes, strict=True):
                shares[part] = size / sum(sizes)
                undo.callback(part.register_forward_hook(count).remove)
        wall, cpu = time.perf_counter(), time.process_time()
        result = run()
        took = time.perf_counter() - wall, time.process_time() - cpu
    return result, Cost(sum(shares[part] * n for part, n in rows.items()), *took)
