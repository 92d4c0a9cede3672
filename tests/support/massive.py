"""Planted outliers: activations of massive norm at one position of every context."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_core.sites import Site


@dataclass(frozen=True, eq=False)
class Massive:
    """The activation at a position, `factor` times as large, in every context."""

    site: Site
    factor: float
    position: int = 3

    def __call__(self, h: Tensor) -> Tensor:
        here = torch.arange(h.shape[1], device=h.device) == self.position
        return torch.where(here[:, None], self.factor * h, h)
