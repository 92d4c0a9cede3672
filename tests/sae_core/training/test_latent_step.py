"""Both matrices stepped row by row are those of autograd, projection, torch's Adam and normalisation, in float64."""

from dataclasses import replace

import pytest
import torch
from trained import EVERY, config, memory, small

from sae_core.dictionaries.sparse import Scratch
from sae_core.kernels import plain
from sae_core.sites import Site
from sae_core.training.latent_step import LatentStep
from sae_core.training.loop import start, step
from sae_core.training.state import Member, TrainState

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


def same(here: Member, there: Member) -> None:
    assert here.sites[SITE].in_one_pass and not there.sites[SITE].in_one_pass
    steps, expected = (memory(TrainState([member])) for member in (here, there))
    assert steps.keys() == expected.keys()
    for name, tensor in steps.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-12, rtol=1e-12, msg=name)
