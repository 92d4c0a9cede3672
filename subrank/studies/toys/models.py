"""Toy models of superposition: many at once, trained as one batched model (Elhage et al. 2022, "Demonstrating").

    h = W x,    x' = W^T h + b (linear)  or  ReLU(W^T h + b),    W of m rows and n columns W_i, m < n
    loss = E sum_i I_i (x_i - x'_i)^2,    I_i = r^i,    x_i uniform on [0, 1] with probability p = 1 - S, else 0

A row in which nothing is active need not be drawn: x' is known there. With q = (1 - p)^n, the share of such rows,

    loss = (1 - q) E[sum_i I_i (x_i - x'_i)^2 | something is active] + q sum_i I_i x'_i(0)^2

has the same value and gradient, and at p = 0.001 one row in fifty would be of use. Models do not know of each other:
the gradient of the summed loss is that of each, and Adam works number by number. Cost per step: about models x batch x
n x 12 m operations; n = 20, m = 5, 77 models of 256 rows take some 5 ms on two cores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LINEAR, RELU = "linear", "ReLU"
RATE, FALLING = 3e-3, 0.5
"""Adam's learning rate, and the share of the steps, at the end, over which it falls to zero."""


@dataclass(frozen=True)
class ToyModel:
    """What one of the models is."""

    kind: str
    """`LINEAR` or `RELU`."""
    density: float
    """The probability p = 1 - S that a feature is active."""


class ToyModels:
    """Weights of toy models that train together, `W` `[model, m, n]` and `b` `[model, n]`."""

    def __init__(self, models: Sequence[ToyModel], importance: Tensor, m: int, *, generator: torch.Generator):
        n = len(importance)
        self.models, self.importance = tuple(models), importance
        densities = list(dict.fromkeys(model.density for model in models))
        # Xavier's normal start: variance 2 / (m + n)
        self.W = torch.randn(len(models), m, n, generator=generator).mul_((2 / (m + n)) ** 0.5).requires_grad_()
        self.b = torch.zeros(len(models), n, requires_grad=True)
        self._densities = torch.tensor(densities, dtype=torch.float64)
        self._level = torch.tensor([densities.index(model.density) for model in models])
        self._least = torch.tensor([0.0 if model.kind == RELU else -torch.inf for model in models])[:, None]
        self._silent = torch.tensor([(1 - model.density) ** n for model in models])

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Rows `[model, batch, n]` in which something is active: the same for all models of a density."""
        return active_rows(self._densities, len(self.importance), batch, generator).index_select(0, self._level)

    def outputs(self, x: Tensor) -> Tensor:
        """x' of rows `[model, batch, n]`."""
        y = torch.baddbmm(self.b[:, None], x @ self.W.mT, self.W)
        return y * (y > self._least[:, None])

    def losses(self, x: Tensor) -> Tensor:
        """The loss of each model, by rows `[model, batch, n]` in which something is active."""
        active = ((x - self.outputs(x)).square() @ self.importance).mean(-1)
        silent = (self.b * (self.b > self._least)).square() @ self.importance
        return (1 - self._silent) * active + self._silent * silent


def active_rows(densities: Tensor, n: int, batch: int, generator: torch.Generator) -> Tensor:
    """Rows `[density, batch, n]` of features, each active with probability p, given that at least one is.

    The first active feature is i with probability p (1 - p)^i / (1 - (1 - p)^n); those behind it are as they are.
    """
    shape, p = (len(densities), batch), densities.double()[:, None, None]
    chance = torch.rand(*shape, 1, generator=generator, dtype=torch.float64)
    first = ((-chance * (1 - (1 - p) ** n)).log1p() / (-p).log1p()).floor().clamp_(max=n - 1)  # p = 1: over -inf
    place = torch.arange(n)
    active = (place > first) & (torch.rand(*shape, n, generator=generator) < p) | (place == first)
    return active * torch.rand(*shape, n, generator=generator)


def train_toys(toys: ToyModels, steps: int, batch: int, *, generator: torch.Generator) -> Iterator[int]:
    """Train in place; yields the number of steps that are done after each."""
    optimizer = torch.optim.Adam([toys.W, toys.b], lr=RATE)
    for step in range(steps):
        toys.losses(toys.draw(batch, generator)).sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (steps - step) / (FALLING * steps))
        optimizer.step()
        optimizer.zero_grad()
        yield step + 1


@torch.no_grad()
def held_out_losses(toys: ToyModels, rows: int, *, generator: torch.Generator, at_once: int = 1024) -> Tensor:
    """The loss of each model on at least so many new rows, the same for all models of a density."""
    passes = -(-rows // at_once)
    return torch.stack([toys.losses(toys.draw(at_once, generator)) for _ in range(passes)]).mean(0)


def linear_optimum(importance: Tensor, m: int, density: float) -> tuple[Tensor, Tensor, float]:
    """W^T W, b and the loss of the best linear model: the m most important features, and the others by their mean.

    With features independent and of one variance v = p / 3 - p^2 / 4 the loss, without the mean, is
    v |D^(1/2) (1 - W^T W)|^2 with D = diag(I): by Eckart and Young rank m leaves the smallest I_i at least, and the
    projector on the other features leaves just these. It is what PCA keeps, of features weighted by I^(1/2).
    """
    kept = torch.zeros_like(importance)
    kept[importance.topk(m).indices] = 1
    variance = density / 3 - density**2 / 4
    return kept.diag(), (1 - kept) * density / 2, variance * (importance * (1 - kept)).sum().item()
