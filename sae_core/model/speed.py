"""How fast a model is here and now, and how long work takes that is counted in its units.

    seconds = blocks * Speed.block + logits * Speed.logits + codes * Speed.code + steps * Speed.step

`blocks` counts tokens through one block each, `logits` positions that are unembedded, `codes` tokens that one
dictionary encodes, `steps` passes of a single token through all blocks, as in generation. A backward pass counts as two
forward ones.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site

LENGTH = 64
"""Tokens of a context that is timed."""
SECONDS = 0.2
"""What a timed batch should take, about."""
TIMES = 3
"""A run is timed so often, and its fastest time taken: what else the machine does slows some of them."""


@dataclass(frozen=True)
class Work:
    """Counted work; works add up, and are multiplied by how often they are done."""

    blocks: int | float = 0
    logits: int | float = 0
    codes: int | float = 0
    steps: int | float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(count + more for count, more in zip(self.counts, other.counts, strict=True)))

    def __mul__(self, times: int | float) -> "Work":
        return Work(*(count * times for count in self.counts))

    @property
    def counts(self) -> tuple[int | float, ...]:
        """The numbers, in the order of the fields."""
        return self.blocks, self.logits, self.codes, self.steps


@dataclass(frozen=True)
class Speed:
    """Seconds per unit of `Work`."""

    block: float
    logits: float
    code: float
    step: float

    def seconds(self, work: Work) -> float:
        """How long so much work takes."""
        prices = (self.block, self.logits, self.code, self.step)
        return sum(count * price for count, price in zip(work.counts, prices, strict=True))


@torch.no_grad()
def measured_speed(model: LanguageModel, dictionaries: Iterable[Dictionary] = ()) -> Speed:
    """The speed of a model, from a batch of at most 16 contexts, and of encoders, the mean of `dictionaries`.

    Takes about a second with a model of a hundred million weights, less with a small one.
    """
    last, length = Site(model.n_layers - 1), min(LENGTH, model.n_ctx)

    def run(rows: int, n: int = length) -> torch.Tensor:
        return model.record(torch.arange(rows * n).view(rows, n) % model.n_vocab, [last])[last]

    run(1, 1)  # what happens only once
    step = _seconds(model, lambda: run(1, 1))
    rows, seconds = 1, _seconds(model, lambda: run(1))
    if seconds < SECONDS / 2:
        rows = min(16, int(SECONDS / seconds))
        seconds = _seconds(model, lambda: run(rows))
    h = run(1, 16)
    model.unembed(h[0, :1])
    logits = _seconds(model, lambda: model.unembed(h[0]).log_softmax(-1)) / len(h[0])
    codes = [_seconds(model, lambda d=d: d.encode(_rows(h, d))) / len(h[0]) for d in dictionaries]
    return Speed(seconds / (rows * length * model.n_layers), logits, sum(codes) / max(1, len(codes)), step)


def _rows(h: torch.Tensor, dictionary: Dictionary) -> torch.Tensor:
    """Rows for a dictionary, which may be of another width than the residual."""
    width = dictionary.directions.shape[-1]
    return h[0] if h.shape[-1] == width else h.new_ones(h.shape[1], width)


def _seconds(model: LanguageModel, run: Callable[[], object]) -> float:
    """Of the fastest of `TIMES` runs."""
    times = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        run()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        times.append(time.perf_counter() - begun)
    return min(times)
