"""One training run, as every contestant is asked for it. Read in all environments: it imports torch alone."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

FOR_EVER = 10**9
"""Steps in the schedule of a run that is only timed."""
SEED = 10**6
"""Added to the seed of those that draw their weights with `torch.manual_seed`, away from any seed of the data."""


@dataclass(frozen=True)
class Job:
    """One training run, as every contestant is asked for it."""

    data: str
    """A safetensors file with the vectors `train`, `[tokens, d_in]`."""
    n_latents: int
    k: int
    batch: int
    steps: int = FOR_EVER
    lr: float = 1e-3
    warm_up: int = 20
    """Steps."""
    dead_after: int = FOR_EVER
    """Tokens without activity after which a latent is dead; for ever means that nobody works on dead latents."""
    seed: int = 0
    device: str = "cpu"
    kind: str = "topk"
    """Or jumprelu (which aims at k), relu, gated."""

    def share(self, step: int) -> float:
        """Share of the learning rate at a step."""
        return min(1.0, (step + 1) / max(1, self.warm_up), (self.steps - step) / max(1.0, 0.2 * self.steps))


class Contestant(Protocol):
    """A training run in progress."""

    def step(self) -> None:
        """Train on the next batch: forward, backward, optimiser, norms."""
        ...

    def directions(self) -> Tensor:
        """The decoder's rows, `[n_latents, d_in]`."""
        ...

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x_hat` and the active latents `[batch, n_latents]` (bool) of the finished dictionary; changes nothing."""
        ...


def batches_of(job: Job, train: Tensor) -> list[Tensor]:
    """The training vectors in an order that depends on the seed alone, cut into whole batches."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(7 * SEED + job.seed))
    rows = train[order].to(job.device)
    return [batch for batch in rows.split(job.batch) if len(batch) == job.batch]
