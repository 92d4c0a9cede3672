"""Off the CPU: a step that never waits for the device, and numbers that are those of a CPU.

On a GPU where there is one, and everywhere on a device that stands for it (`far.py`): it refuses tensors that were left
on the CPU, and counts what a GPU would have to be waited for. The language model's part is in `test_gpu_model.py` and
`test_gpu_verbs.py`: it runs there, as it cannot on torch's meta device, whose tensors hold no numbers.
"""

from dataclasses import fields, replace

import pytest
import torch
from planted import Planted, planted_directions, unchecked
from random_saes import every_dictionary, normal
from trained import EVERY, config, memory

from editing.interventions.patch import ablate, mean_ablate, patch_features, scale, splice_with_error
from sae_core.dictionaries import sparse
from sae_core.kernels import plain
from sae_core.kernels.choice import kernels_for
from sae_core.outliers import NO_LIMITS
from sae_core.sites import Site
from sae_core.training.config import TrainConfig
from sae_core.training.latent_step import LatentStep
from sae_core.training.loop import start, step, train
from sae_core.training.state import TrainState
from sae_core.training.topk_recipes import TopK

SITE = Site(0)
KINDS = EVERY | {"multi": TopK(2, multi=1 / 8), "no aux": TopK(2, aux=0.0)}


class OnDevice(Planted):
    """The activations of a CPU stream, moved."""

    def block(self, block: int, limits=NO_LIMITS, steps=None):
        cpu = Planted(self.directions.cpu(), self.sites, self.batch, self.n_active, self.batches)
        for batch in cpu.block(block):
            yield {site: x.to(self.directions.device) for site, x in batch.items()}


def stream_on(device: str) -> OnDevice:
    return OnDevice(planted_directions(30, 12).to(device), batch=64, batches=5)


def trained(settings: TrainConfig, device: str) -> TrainState:
    stream = stream_on(device)
    state = start(stream, settings)
    for _ in train(stream, state):
        pass
    return state


def wait_for_nothing(device, settings: TrainConfig, n_dead: int, *, in_one_pass: bool = False) -> None:
    """Two steps, the first having made the optimiser's memory. Control: looking at a number does wait."""
    stream = stream_on(device.name)
    state = start(stream, settings)
    (member,), scratch = state.members, sparse.Scratch()
    site, batches = member.sites[SITE], list(stream.block(0))
    site.dead = torch.arange(n_dead, device=device.name)
    if in_one_pass:
        kernels = kernels_for(site.dead.device) or plain
        site.in_one_pass = LatentStep(site.weights, site.optimizer, torch.float32, kernels)
    step(member, SITE, batches[0], 0, scratch)
    with device.unread():
        for number in (1, 2):
            step(member, SITE, batches[number], number, scratch)
    with pytest.raises(RuntimeError), device.unread():
        site.lost.item()
    assert site.lost.item() == -1


@pytest.mark.parametrize("n_dead", [0, 5])
@pytest.mark.parametrize("name", KINDS)
def test_a_step_waits_for_nothing(name, n_dead, device):
    wait_for_nothing(device, config(KINDS[name], clip=1.0), n_dead)


@pytest.mark.parametrize("n_dead", [0, 5])
@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_a_step_in_one_pass_waits_for_nothing(name, n_dead, device):
    wait_for_nothing(device, config(KINDS[name]), n_dead, in_one_pass=True)


@pytest.mark.parametrize("name", KINDS)
def test_a_few_steps_are_those_of_a_cpu(name, device):
    settings = config(KINDS[name], steps=5, clip=1.0, lr=1e-4)  # small: Adam turns rounding into whole steps
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        here, there = memory(trained(settings, "cpu")), memory(trained(settings, device.name))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert here.keys() == there.keys()
    for key, tensor in here.items():
        torch.testing.assert_close(there[key].cpu(), tensor, atol=1e-4, rtol=1e-4, msg=key)


@pytest.mark.parametrize("k", [1, 4, 40])
def test_choices_are_those_of_a_cpu(k, device):
    pre = torch.randn(100, 256, generator=torch.Generator().manual_seed(0))
    here, there = sparse.top(pre, k), sparse.top(pre.to(device.name), k)
    assert torch.equal(here[0].sort().values, there[0].cpu().sort().values)
    assert torch.equal(here[1].sort().values, there[1].cpu().sort().values)
    chosen = sparse.batch_top(pre.to(device.name), k * 100)
    assert torch.equal(chosen.dense().cpu(), sparse.batch_top(pre, k * 100).dense())
    parts = chosen.split_at([16]).dense()
    assert torch.equal(parts[::2] + parts[1::2], chosen.dense()) and not parts[::2, 16:].any()


def moved(dictionary, device: str):
    """A dictionary on another device; baselines are plain values."""
    if isinstance(dictionary, torch.nn.Module):
        return dictionary.to(device)
    return replace(dictionary, **{part.name: getattr(dictionary, part.name).to(device) for part in fields(dictionary)})


def test_codes_patches_and_ablations_stay_on_the_device_and_wait_for_nothing(device):
    """Of every kind of dictionary: what is read at a site, and what edits write there."""
    h, other, results = normal(2, 5, 8), normal(2, 5, 8, seed=1), {}
    for name in ("cpu", device.name):
        x, y, results[name] = h.to(name), other.to(name), {}
        for kind, dictionary in every_dictionary().items():
            sae, site, latents = moved(dictionary, name), SITE, [1, 4]
            edits = [
                patch_features(site, sae, latents, y),
                ablate(site, sae, latents),
                mean_ablate(site, sae, latents, y[0]),
                scale(site, sae, latents, 2.0),
                splice_with_error(site, sae, y),
            ]
            with torch.no_grad(), unchecked(), device.unread():
                results[name][kind] = [sae.encode(x), sae.decode(sae.encode(x)), *(edit(x) for edit in edits)]
    for kind, here in results["cpu"].items():
        for a, b in zip(here, results[device.name][kind], strict=True):
            assert b.device.type == device.name
            torch.testing.assert_close(b.cpu(), a, msg=kind)
