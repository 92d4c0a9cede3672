"""On a GPU: a step that never waits for the device, and that does what the same step does on a CPU."""

import pytest
import torch
from planted import Planted, planted_directions
from test_training import EVERY, config, memory

from sae_core import sparse
from sae_core.objectives import BatchTopK, TopK
from sae_core.sites import Site
from sae_core.training import TrainConfig, TrainState, start, step, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SITE = Site(0)
TOPK = {"topk": TopK(2), "no aux": TopK(2, aux=0.0), "multi": TopK(2, multi=1 / 8), "batchtopk": BatchTopK(2)}
TOPK |= {"matryoshka": EVERY["matryoshka"]}


class OnDevice(Planted):
    """The activations of a CPU stream, moved."""

    def block(self, block: int):
        cpu = Planted(self.directions.cpu(), self.sites, self.batch, self.n_active, self.batches)
        for batch in cpu.block(block):
            yield {site: x.to(self.directions.device) for site, x in batch.items()}


def stream_on(device: str) -> OnDevice:
    return OnDevice(planted_directions(30, 12).to(device), batch=64, batches=5)


def trained(own: TrainConfig, device: str) -> TrainState:
    stream = stream_on(device)
    state = start(stream, own)
    for _ in train(stream, state):
        pass
    return state


@pytest.mark.parametrize("n_dead", [0, 5])
@pytest.mark.parametrize("name", TOPK)
def test_a_step_waits_for_nothing(name, n_dead):
    stream = stream_on("cuda")
    state = start(stream, config(TOPK[name], clip=1.0))
    (member,), scratch = state.members, sparse.Scratch()
    batches = list(stream.block(0))
    member.sites[SITE].dead = torch.arange(n_dead, device="cuda")
    step(member, SITE, batches[0], 0, scratch)  # the optimiser makes its memory
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in (1, 2):
            step(member, SITE, batches[number], number, scratch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(RuntimeError):  # control: looking at a number does wait
        torch.cuda.set_sync_debug_mode("error")
        try:
            member.sites[SITE].lost.item()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert member.sites[SITE].lost.item() == -1


@pytest.mark.parametrize("name", [*EVERY, "multi", "no aux"])
def test_a_few_steps_are_those_of_a_cpu(name):
    own = config((EVERY | TOPK)[name], steps=5, clip=1.0, lr=1e-4)  # small: Adam turns rounding into whole steps
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        here, there = memory(trained(own, "cpu")), memory(trained(own, "cuda"))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert here.keys() == there.keys()
    for key, tensor in here.items():
        torch.testing.assert_close(there[key].cpu(), tensor, atol=1e-4, rtol=1e-4, msg=key)


@pytest.mark.parametrize("k", [1, 4, 40])
def test_choices_are_those_of_a_cpu(k):
    pre = torch.randn(100, 256, generator=torch.Generator().manual_seed(0))
    here, there = sparse.top(pre, k), sparse.top(pre.cuda(), k)
    assert torch.equal(here[0].sort().values, there[0].cpu().sort().values)
    assert torch.equal(here[1].sort().values, there[1].cpu().sort().values)
    chosen = sparse.batch_top(pre.cuda(), k * 100)
    assert torch.equal(chosen.dense().cpu(), sparse.batch_top(pre, k * 100).dense())
    parts = [chosen.between(low, high).dense() for low, high in ((0, 16), (16, 256))]
    assert torch.equal(parts[0] + parts[1], chosen.dense()) and not parts[0][:, 16:].any()
