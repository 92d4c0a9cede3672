"""What a recipe is: it makes an untrained dictionary and states the loss that training minimises.

The loop (`loop.py`) is the same for all recipes; they are in `topk_recipes.py` and `penalty_recipes.py`.

Units. Activations come scaled so that E|x|^2 = d_in. Losses of reconstruction are either the batch's FVU,
sum |x - x_hat|^2 / sum |x - mean x|^2 (TopK, BatchTopK, Matryoshka, JumpReLU), or, where an L1 penalty
must weigh against it, |x - x_hat|^2 / d_in, averaged over the batch (ReLU, Gated). An L1 coefficient is
in the sum convention: |x - x_hat|^2 + l1 * sum_j f_j per token, of which the loss is the mean over the
batch, divided by d_in. See `l1_of_mean` for the other convention.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from sae_core.dictionaries import sparse
from sae_core.dictionaries.saes import SAE
from sae_core.errors import UserError


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


@runtime_checkable
class Recipe(Protocol):
    """An architecture to train: an untrained dictionary and the loss it minimises."""

    def new(self, d_in: int, n_latents: int, *, generator: torch.Generator) -> SAE:
        """An untrained dictionary."""
        ...

    def loss(self, sae: Any, x: Tensor, context: LossContext) -> Outcome:
        """The loss of a batch `[batch, d_in]`; changes nothing."""
        ...


# ---- parts that recipes share ---------------------------------------------------------------------


def batch_fvu(x: Tensor, x_hat: Tensor) -> Tensor:
    """sum |x - x_hat|^2 / sum |x - mean x|^2 over a batch `[batch, d_in]`."""
    return (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """|x - x_hat|^2 / d_in, mean over a batch `[batch, d_in]`."""
    return (x - x_hat).square().sum(-1).mean() / x.shape[-1]


def dense_outcome(loss: Tensor, x: Tensor, x_hat: Tensor, f: Tensor) -> Outcome:
    """The outcome of dense codes `f`, `[batch, n_latents]`."""
    active = f.detach() != 0
    return Outcome(loss, x_hat, batch_fvu(x, x_hat).detach(), active.any(0), active.sum(-1).to(x.dtype).mean())


def check_k(k: int, n_latents: int) -> None:
    """Raise `UserError` unless so many latents can be active."""
    if not 1 <= k <= n_latents:
        raise UserError(f"k must lie between 1 and the number of latents, {n_latents}; got k={k}")
