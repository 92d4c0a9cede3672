"""Activations made of known directions, for the tests of training: what a dictionary ought to find."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import config
from torch import Tensor

from sae_core.outliers import NO_LIMITS
from sae_core.sites import Site


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted_directions(n: int = 48, d_in: int = 20, *, seed: int = 7) -> Tensor:
    """Unit rows."""
    return F.normalize(torch.randn(n, d_in, generator=generator(seed)), dim=-1)


def mean_max_cosine(truth: Tensor, learned: Tensor) -> float:
    """Over the rows of `truth`, the mean cosine with the nearest row of `found`."""
    return (truth.double() @ F.normalize(learned.double(), dim=-1).T).amax(1).mean().item()


@contextmanager
def unchecked() -> Iterator[None]:
    """For long runs: without the check of shapes, which takes most of their time. The tests of their parts have it."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)


@dataclass(frozen=True, eq=False)
class Planted:
    """A stream of sparse positive combinations of unit directions, in their dtype, other ones at each site."""

    directions: Tensor
    sites: tuple[Site, ...] = (Site(0),)
    batch: int = 256
    n_active: int = 2
    batches: int = 16
    """Per block."""

    def block(self, block: int, limits=NO_LIMITS, steps=None) -> Iterator[dict[Site, Tensor]]:
        for number in range(block * self.batches, (block + 1) * self.batches):
            n, chance = len(self.directions), generator(number)
            active = torch.rand(self.batch, n, generator=chance).topk(self.n_active, dim=-1).indices
            size = 0.5 + torch.rand(self.batch, self.n_active, generator=chance)
            f = torch.zeros(self.batch, n).scatter(-1, active, size).to(self.directions.dtype)
            yield {site: (1 + site.layer) * f @ self.directions.roll(site.layer, dims=-1) for site in self.sites}


@dataclass(frozen=True, eq=False)
class Rows:
    """A stream of given activations, `[tokens, d_in]`, from the start again in each block."""

    x: Tensor
    batch: int
    sites: tuple[Site, ...] = (Site(0),)

    def block(self, block: int, limits=NO_LIMITS, steps=None) -> Iterator[dict[Site, Tensor]]:
        for rows in self.x.split(self.batch):
            if len(rows) == self.batch:
                yield dict.fromkeys(self.sites, rows)
