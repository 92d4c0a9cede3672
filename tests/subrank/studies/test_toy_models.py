"""Toy models: the batch is the sum of its members, rows are as likely as they should be, and optima are known."""

from collections import Counter
from itertools import product

import pytest
import torch
from planted import generator
from torch import Tensor

from subrank.studies.toys.models import (
    FALLING,
    LINEAR,
    RATE,
    RELU,
    ToyModel,
    ToyModels,
    active_rows,
    held_out_losses,
    linear_optimum,
    train_toys,
)

IMPORTANCE = 0.7 ** torch.arange(6)
MODELS = [ToyModel(kind, density) for kind in (LINEAR, RELU) for density in (1.0, 0.2) for _ in range(2)]


def toys(models=MODELS, *, m: int = 3, seed: int = 0) -> ToyModels:
    built = ToyModels(models, IMPORTANCE, m, generator=generator(seed))
    built.b.data += 0.1 * torch.randn(built.b.shape, generator=generator(seed + 1))
    return built


def plain_loss(model: ToyModel, W: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """The loss of one model, row by row, and the row of nothing as often as it comes."""
    cut = torch.relu if model.kind == RELU else lambda y: y
    rows = [(IMPORTANCE * (row - cut(W.T @ (W @ row) + b)) ** 2).sum() for row in x]
    silent = (1 - model.density) ** len(IMPORTANCE)
    return (1 - silent) * sum(rows) / len(rows) + silent * (IMPORTANCE * cut(b) ** 2).sum()


def test_losses_and_gradients_are_those_of_a_loop_over_models_and_rows():
    batched = toys()
    x = batched.draw(7, generator(3))
    losses = batched.losses(x)
    losses.sum().backward()
    for index, model in enumerate(MODELS):
        W, b = (each.detach()[index].clone().requires_grad_() for each in (batched.W, batched.b))
        loss = plain_loss(model, W, b, x[index])
        loss.backward()
        torch.testing.assert_close(losses[index], loss)
        torch.testing.assert_close((batched.W.grad[index], batched.b.grad[index]), (W.grad, b.grad))
        other = ToyModel({LINEAR: RELU, RELU: LINEAR}[model.kind], model.density)
        assert (plain_loss(other, W, b, x[index]) - loss).abs() > 1e-4  # control: the ReLU does something


def test_training_together_is_training_each_alone():
    batched, steps = toys(), 12
    begun = [(batched.W.detach()[i].clone(), batched.b.detach()[i].clone()) for i in range(len(MODELS))]
    assert [*train_toys(batched, steps, 5, generator=generator(4))] == [*range(1, steps + 1)]
    chance = generator(4)
    rows = [toys().draw(5, chance) for _ in range(steps)]
    for index, (model, start) in enumerate(zip(MODELS, begun, strict=True)):
        W, b = (each.requires_grad_() for each in start)
        optimizer = torch.optim.Adam([W, b])
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = RATE * min(1.0, (steps - step) / (FALLING * steps))
            optimizer.zero_grad()
            plain_loss(model, W, b, rows[step][index]).backward()
            optimizer.step()
        torch.testing.assert_close((batched.W[index], batched.b[index]), (W, b), rtol=1e-4, atol=1e-5)


def test_copies_of_a_density_read_the_same_rows():
    x = toys().draw(9, generator())
    for index, model in enumerate(MODELS):
        assert torch.equal(x[index], x[MODELS.index(model)])
    assert not torch.equal(x[0], x[2])


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_rows_are_as_often_active_as_they_should_be(density):
    """Each pattern of three features that are active, against its probability given that one is."""
    n, batch = 3, 40_000
    x = active_rows(torch.tensor([density]), n, batch, generator(1))[0]
    seen = Counter(map(tuple, (x > 0).tolist()))

    def off(p: float) -> float:
        expected = {
            pattern: p ** sum(pattern) * (1 - p) ** (n - sum(pattern)) / (1 - (1 - p) ** n)
            for pattern in product((False, True), repeat=n)
            if any(pattern)
        }
        return max(abs(seen[pattern] / batch - share) for pattern, share in expected.items())

    assert off(density) < 0.01 and seen[False, False, False] == 0
    assert off(0.25) > 0.05  # control: of another density
    values = x[x > 0]
    assert values.mean().item() == pytest.approx(0.5, abs=0.01) and values.max() < 1


def test_the_loss_is_that_of_all_rows():
    """Rows of nothing included, which are not drawn."""
    models = [ToyModel(RELU, 0.1)]
    batched = toys(models)
    with torch.no_grad():
        batched.b -= 0.05
    n_rows = 200_000
    x = torch.rand(n_rows, 6, generator=generator(5)) * (torch.rand(n_rows, 6, generator=generator(6)) < 0.1)
    with torch.no_grad():
        direct = ((x - batched.outputs(x[None])[0]).square() @ IMPORTANCE).mean().item()
    drawn = held_out_losses(batched, 100_000, generator=generator(7)).item()
    assert drawn == pytest.approx(direct, rel=0.03)
    assert held_out_losses(toys([ToyModel(RELU, 0.3)]), 10_000, generator=generator(7)).item() > 1.5 * direct  # control


@pytest.mark.parametrize("density", [1.0, 0.1])
def test_the_linear_optimum_is_the_least_loss(density):
    """It is what the closed form says, no step away from it helps, and other features cost more."""
    m, batched = 2, toys([ToyModel(LINEAR, density)] * 5, m=2)
    product, bias, least = linear_optimum(IMPORTANCE, m, density)
    best = torch.eye(m, len(IMPORTANCE))
    assert torch.equal(best.T @ best, product)
    with torch.no_grad():
        batched.b.copy_(bias)
        batched.W.copy_(best)
        batched.W[1] += 0.1 * torch.randn(best.shape, generator=generator(8))
        batched.b[2] += 0.05
        batched.W[3] = best.flip(1)  # the least important ones
        batched.W[4] = best @ torch.linalg.qr(torch.randn(6, 6, generator=generator(9))).Q
    losses = held_out_losses(batched, 100_000, generator=generator(10))
    assert losses[0].item() == pytest.approx(least, rel=0.02)
    assert (losses[1:] > 1.01 * losses[0]).all()
