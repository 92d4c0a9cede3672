"""Both matrices stepped row by row are those of autograd, projection, torch's Adam and normalisation, in float64."""

from dataclasses import replace

import pytest
import torch
from trained import EVERY, config, memory, small

from sae_core.dictionaries.sparse import Scratch
from sae_core.kernels import plain
from sae_core.sites import Site
from sae_core.training import loop
from sae_core.training.latent_step import LatentStep
from sae_core.training.loop import start, step
from sae_core.training.state import Member, TrainState
from sae_core.training.topk_recipes import TopK

SITE = Site(0)
RECIPES = {name: EVERY[name] for name in ("topk", "batchtopk", "matryoshka")}
RECIPES["no aux"] = replace(EVERY["topk"], aux=0.0)


def stepped(recipe, *, in_one_pass: bool, n_dead: int, resumed_at: int = 0) -> Member:
    """Three steps of a member, some of whose latents are called dead; from some step on in one pass."""
    stream = small((SITE,), dtype=torch.float64)
    (member,) = start(stream, config(recipe)).members
    state = member.sites[SITE]
    state.dead, scratch = torch.arange(n_dead), Scratch(most=20 * state.n_latents)
    for number, batch in enumerate(list(stream.block(0))[:3]):
        if in_one_pass and number == resumed_at:
            state.in_one_pass = LatentStep(state.weights, state.optimizer, torch.float64, plain)
        step(member, SITE, batch, number, scratch)
    return member


@pytest.mark.parametrize("n_dead", [0, 3, 20])
@pytest.mark.parametrize("name", RECIPES)
def test_three_steps_are_those_of_autograd_and_adam(name, n_dead):
    same(*(stepped(RECIPES[name], in_one_pass=way, n_dead=n_dead) for way in (True, False)))


def test_it_goes_on_from_moments_that_there_are():
    late = stepped(EVERY["topk"], in_one_pass=True, n_dead=3, resumed_at=2)
    same(late, stepped(EVERY["topk"], in_one_pass=False, n_dead=3))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (config(EVERY["topk"]), True),
        (config(EVERY["matryoshka"]), True),
        (config(EVERY["topk"], clip=1.0), False),
        (config(TopK(2, multi=1 / 8)), False),
        (config(EVERY["gated"]), False),
    ],
    ids=["topk", "matryoshka", "clipped", "multi", "gated"],
)
def test_who_steps_in_one_pass_where_there_are_kernels(settings, expected, monkeypatch):
    monkeypatch.setattr(loop, "kernels_for", lambda device: plain)
    for dtype in (torch.float32, torch.float64):
        stream = small((SITE,), dtype=dtype)
        (member,) = start(stream, settings).members
        step(member, SITE, next(iter(stream.block(0))), 0, Scratch(torch.bfloat16))
        stepper = member.sites[SITE].in_one_pass
        assert (stepper is not None) == (expected and dtype is torch.float32)
        if stepper:
            assert stepper.begin().W_dec.dtype is torch.bfloat16


def same(here: Member, there: Member) -> None:
    assert here.sites[SITE].in_one_pass and not there.sites[SITE].in_one_pass
    steps, expected = (memory(TrainState([member])) for member in (here, there))
    assert steps.keys() == expected.keys()
    for name, tensor in steps.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-12, rtol=1e-12, msg=name)
