"""A step on the meta device, whose tensors have shapes and no numbers: what it refuses, a GPU would wait for or refuse.

That is: tensors left on another device, and reads of numbers (`.item()`, `nonzero`).
"""

import pytest
import torch
from planted import Planted, planted_directions
from trained import EVERY, config

from sae_core.dictionaries import sparse
from sae_core.sites import Site
from sae_core.training.loop import start, step
from sae_core.training.state import SiteState, site_state
from sae_core.training.topk_recipes import TopK

SITE = Site(0)
RECIPES = EVERY | {"multi": TopK(2, multi=1 / 8), "no aux": TopK(2, aux=0.0)}


class PlainAdam(torch.optim.Adam):
    """The fused one is not made for this device."""

    def __init__(self, *args, fused: bool, **options):
        super().__init__(*args, foreach=False, **options)


@pytest.mark.parametrize("n_dead", [0, 5])
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_leaves_the_device_nowhere_and_reads_no_number(name, n_dead, monkeypatch):
    """Control: a number that is read raises."""
    monkeypatch.setattr(torch.optim, "Adam", PlainAdam)
    stream = Planted(planted_directions(30, 12), batch=64, batches=1)
    (member,) = start(stream, config(RECIPES[name], clip=1.0)).members
    state = member.sites[SITE]
    member.sites[SITE] = on_meta = site_state(state.sae.to("meta"), state.scale)
    on_meta.dead = torch.zeros(n_dead, dtype=torch.long, device="meta")
    (batch,) = stream.block(0)
    step(member, SITE, {SITE: batch[SITE].to("meta")}, 0, sparse.Scratch())
    assert all(tensor.is_meta for tensor in tensors_of(on_meta))
    with pytest.raises((NotImplementedError, RuntimeError)):
        on_meta.lost.item()


def tensors_of(state: SiteState) -> list[torch.Tensor]:
    memory = [value for values in state.optimizer.state.values() for value in values.values()]
    counters = [state.silent, state.dead, state.threshold, state.lost]
    return [*state.sae.parameters(), *counters, *(tensor for tensor in memory if tensor.ndim)]
