"""What a recipe is: it makes an untrained dictionary and states the loss that training minimises.

The loop (`loop.py`) is the same for all recipes; they are in `topk_recipes.py` and `penalty_recipes.py`.

Units. Activations come scaled so that E|x|^2 = d_in. Losses of reconstruction are either the batch's FVU,
sum |x - x_hat|^2 / sum |x - mean x|^2 (TopK, BatchTopK, Matryoshka, JumpReLU), or, where an L1 penalty
must weigh against it, |x - x_hat|^2 / d_in, averaged over the batch (ReLU, Gated). An L1 coefficient is
in the sum convention: |x - x_hat|^2 + l1 * sum_j f_j per token, of which the loss is the mean over the
batch, divided by d_in. See `l1_of_mean` for the other convention.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from sae_core.dictionaries import sparse
from sae_core.dictionaries.codes import Codes
from sae_core.dictionaries.deferred import Deferred
from sae_core.dictionaries.saes import SAE
from sae_core.errors import UserError
from sae_core.sharding.ranks import ALONE, Ranks


@dataclass(frozen=True, eq=False)
class Outcome:
    """Loss of one batch, and what progress reports and the count of dead latents need. All on the device."""

    loss: Tensor
    x_hat: Tensor
    """Reconstruction of the scaled activations; gradients pass through it."""
    fvu: Tensor
    """FVU of this batch, about the batch's own mean."""
    active: Tensor
    """Which latents were active on any token, `[n_latents]` bool."""
    l0: Tensor
    threshold: Tensor | None = None
    """The smallest activation that was kept, where a batch decides that."""


@dataclass(frozen=True, eq=False)
class LossContext:
    """What a loss may know besides the batch."""

    dead: Int[Tensor, "n_dead"]
    """Indices of latents that have not been active for long."""
    ramp: float = 1.0
    """Share of the sparsity penalty that is in force, rising from 0 to 1."""
    scratch: sparse.Scratch = field(default_factory=sparse.Scratch)
    ranks: Ranks = ALONE
    """Over which the latents, and the rows, are spread."""
    dead_elsewhere: int = 0
    """How many latents of other ranks have not been active for long."""
    n_latents: int = 0
    """Of the whole dictionary; 0: all are here."""
    deferred: Deferred | None = None
    """Where the optimiser takes the gradients of both matrices from; None: they are matrices."""

    def pieces(self, sae: SAE, x: Tensor) -> Iterator[Tensor]:
        """What latents of `x` are before their activation, `[rows, n_latents]`, of some rows after others; no graph."""
        W_enc = self.deferred.W_enc.T if self.deferred else sae.W_enc
        return self.scratch.pieces(x, W_enc, sae.b_enc, sae.b_dec)


@runtime_checkable
class Recipe(Protocol):
    """An architecture to train: an untrained dictionary and the loss it minimises."""

    def new(self, d_in: int, n_latents: int, *, generator: torch.Generator) -> SAE:
        """An untrained dictionary."""
        ...

    def loss(self, sae: Any, x: Tensor, context: LossContext) -> Outcome:
        """The loss of a batch `[batch, d_in]`, or of a replica's rows; changes nothing."""
        ...


# ---- parts that recipes share ---------------------------------------------------------------------


def batch_fvu(x: Tensor, x_hat: Tensor, ranks: Ranks = ALONE, total: Tensor | None = None) -> Tensor:
    """sum |x - x_hat|^2 / sum |x - mean x|^2 over a batch, of which each rank has its own rows `[answered, d_in]`.

    `total` is the second sum, where that is known already (`squares_around_mean`).
    """
    error = ranks.total((x - x_hat).square().sum())
    return error / (squares_around_mean(x, ranks) if total is None else total)


def squares_around_mean(x: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """sum |x - mean x|^2 over a batch, of which each rank has its own rows `[answered, d_in]`."""
    return ranks.total((x - ranks.mean_row(x)).square().sum())


def squared_error(x: Tensor, x_hat: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """|x - x_hat|^2 / d_in, mean over a batch, of which each rank has its own rows `[answered, d_in]`."""
    return ranks.total((x - x_hat).square().sum(-1).mean() / ranks.size) / x.shape[-1]


def sparse_outcome(
    loss: Tensor, x_hat: Tensor, fvu: Tensor, codes: Codes, threshold: Tensor | None = None, ranks: Ranks = ALONE
) -> Outcome:
    """The outcome of sparse codes."""
    on = (codes.values.detach() > 0).to(x_hat.dtype)
    active = on.new_zeros(codes.n_latents).index_add_(0, codes.indices, on) > 0
    return Outcome(loss, x_hat, fvu.detach(), active, ranks.mean(on.sum() / (len(codes.offsets) - 1)), threshold)


def check_k(k: int, n_latents: int) -> None:
    """Raise `UserError` unless so many latents can be active."""
    if not 1 <= k <= n_latents:
        raise UserError(f"k must lie between 1 and the number of latents, {n_latents}; got k={k}")
