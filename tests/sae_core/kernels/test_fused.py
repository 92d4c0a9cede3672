"""The kernels in Triton compute what plain PyTorch does, and twice the same to the bit.

On a GPU where there is one, else in Triton's interpreter, at tiny sizes.
"""

import os
from dataclasses import fields

import pytest
import torch
from planted import unchecked
from trained import EVERY, config, memory, small

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="Triton comes with torch for CUDA and is not installed here")

from sae_core.dictionaries.sparse import Codes, Scratch, ranked_top
from sae_core.kernels import fused, plain
from sae_core.kernels.interface import Adam, Matrix, Sums
from sae_core.sites import Site
from sae_core.training.latent_step import LatentStep
from sae_core.training.loop import start, step
from sae_core.training.state import TrainState

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, N, D = 340, 24, 40


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def codes(seed: int, batch: int = BATCH) -> Codes:
    """Of a few latents on nearly every token, many on few, and some on none; one token has none."""
    often = torch.linspace(0.95, -0.1, N).pow(3).to(DEVICE)
    drawn = torch.rand(batch, N, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    f = normal(batch, N, seed=seed) * (drawn < often)
    f[7] = 0
    return Codes.where(f)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 1])
def test_decoding_and_its_gradient(dtype, seed):
    f, W, g = codes(seed, 30), normal(N, D, seed=2).to(dtype), normal(30, D, seed=3)
    for name, arguments in {
        "decode": (f.indices, f.values, f.offsets, W),
        "slopes": (f.indices, f.offsets, g, W),
    }.items():
        first, again, expected = (getattr(kernels, name)(*arguments) for kernels in (fused, fused, plain))
        torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(first, again)


def gradient(seed: int, n_dead: int) -> Sums:
    f = codes(seed)
    order, tokens, bounds = f.by_latent
    slot = torch.full((N,), -1, device=DEVICE)
    slot[N - n_dead :] = torch.arange(n_dead, device=DEVICE)
    rows, dead = normal(BATCH, D, seed=seed + 1), normal(n_dead, D, seed=seed + 2)
    return Sums(f.indices[order], bounds, tokens, f.values[order], rows, slot, dead)


def matrix() -> Matrix:
    weight = torch.nn.functional.normalize(normal(N, D, seed=20), dim=-1)
    copy = torch.full((N, D), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    return Matrix(weight, copy, 0.1 * normal(N, D, seed=21), normal(N, D, seed=22).square())


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("n_dead", [0, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_step_of_rows(seed, n_dead, unit):
    """The most frequent latent has more entries than two tiles hold; some have none, and are stepped all the same."""
    sums, results = gradient(seed, n_dead), []
    counts = sums.bounds.diff()
    assert counts.max() > 2 * fused._TILE + 1 and counts.min() == 0
    for kernels in (fused, fused, plain):
        rows = matrix()
        for number in (3, 4):
            kernels.step_rows(sums, rows, Adam(1e-2, number), unit)
        results.append([getattr(rows, part.name) for part in fields(rows)])
    for first, again, expected in zip(*results, strict=True):
        assert torch.equal(first, again)
        loose = 1e-2 if first.dtype is torch.bfloat16 else 2e-5
        torch.testing.assert_close(first, expected, atol=loose, rtol=loose)
    weight, copy = results[0][:2]
    # rounded to the nearest on a GPU, cut off in the interpreter
    torch.testing.assert_close(copy.float(), weight, atol=0, rtol=2**-8 if DEVICE == "cuda" else 2**-7)
    assert unit == torch.allclose(weight.norm(dim=-1), torch.ones(N, device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keys_of_groups(dtype):
    pre = (2 * normal(5, 800)).round(decimals=1).to(dtype)
    pre[0, :8], pre[1, 3], pre[2, :] = -0.0, -torch.inf, -pre[2].abs()
    assert torch.equal(fused.group_keys(pre, 8), plain.group_keys(pre, 8))
    values, indices = ranked_top(pre, 7)
    expected = pre.float().sort(dim=-1, descending=True, stable=True)
    assert torch.equal(indices, expected.indices[:, :7]) and torch.equal(values.float(), expected.values[:, :7])


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_steps_of_training(name):
    """Two, with dead latents, against those that autograd and torch's Adam make."""
    states = []
    for kernels in (fused, fused, None):
        stream = small((Site(0),))
        (member,) = start(stream, config(EVERY[name], lr=1e-3)).members
        state = member.sites[Site(0)]
        state.dead = torch.arange(3)
        with unchecked():
            for number, batch in enumerate(list(stream.block(0))[:2]):
                if kernels and not number:
                    state.in_one_pass = LatentStep(state.weights, state.optimizer, torch.float32, kernels)
                step(member, Site(0), batch, number, Scratch())
        states.append(memory(TrainState([member])))
    for key, expected in states[2].items():
        assert torch.equal(states[0][key], states[1][key])
        torch.testing.assert_close(states[0][key], expected, atol=2e-5, rtol=1e-4, msg=key)
