"""A model and a dictionary whose features follow planted rules of tokens."""

from dataclasses import dataclass

import torch
from handmade import HandModel
from torch import Tensor

from sae_core.sites import Site

A, B, C, D, E = 3, 4, 5, 6, 7
SITE = Site(1)


@dataclass(frozen=True, eq=False)
class Planted:
    """f_j = relu(h . reads_j - threshold_j), along directions of its own."""

    reads: Tensor
    threshold: Tensor

    @property
    def directions(self) -> Tensor:
        return torch.nn.functional.normalize(self.reads, dim=-1)

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.reads.T - self.threshold).relu()

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.directions


B_AFTER_A, ON_C, AFTER_D, A_GAP_B, SILENT, ON_E = range(6)


def planted() -> tuple[HandModel, dict[Site, Planted]]:
    """Token t writes axis t; axes 10 and 11 say that A or D came just before, axis 12 that A came two before."""
    embedding = torch.eye(9, 14)
    embedding[0] = 0  # BOS
    before, twice = torch.zeros(2, 14, 14)
    before[10, A] = before[11, D] = 1
    twice[12, 10] = 1
    nothing = torch.zeros(14, 14)
    model = HandModel(embedding, [(nothing, before), (nothing, twice)])
    reads, threshold = torch.zeros(6, 14), torch.zeros(6)
    reads[B_AFTER_A, [B, 10]], threshold[B_AFTER_A] = torch.tensor([2.0, 2.0]), 2.5
    reads[ON_C, C] = 3
    reads[AFTER_D, 11] = 1
    reads[A_GAP_B, [B, 12]], threshold[A_GAP_B] = 1.0, 1.5
    threshold[SILENT] = 1
    reads[ON_E, E] = 1
    return model, {SITE: Planted(reads, threshold)}


def texts(n: int, seed: int, length: int = 24) -> Tensor:
    tokens = torch.randint(1, 9, (n, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = 0
    return tokens
