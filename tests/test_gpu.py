"""On a GPU: a step that never waits for the device, and numbers that are those of a CPU."""

import pytest
import torch
from handmade import random_topk
from planted import Planted, planted_directions
from trained import EVERY, config, memory

from editing.interventions.add_direction import AddDirection
from editing.interventions.compose import Scaled
from editing.interventions.edit_size import edit_sizes
from editing.interventions.erase import mean_difference
from editing.interventions.masks import Onward
from editing.interventions.patch import patch_features, scale
from editing.ioi.curve import trace
from editing.ioi.feature_selection import SELECTORS, SelectionConfig
from editing.ioi.joint_experiment import JointExperiment
from editing.ioi.site_experiment import PatchExperiment
from editing.loss_recovered import Splice
from editing.steering.dose_response import dose_response
from editing.steering.edits import Mode, Steering
from editing.steering.feature_text import read_features
from editing.steering.held_out import DoseConfig
from editing.tasks.ioi import Corruption, IOITask, Role
from sae_core.data.text import Text
from sae_core.dictionaries import sparse
from sae_core.model.generation import Sampling, generate
from sae_core.model.language_model import LanguageModel, load_model
from sae_core.outliers import NO_LIMITS
from sae_core.sites import FeatureId, Site
from sae_core.training.config import TrainConfig
from sae_core.training.loop import start, step, train
from sae_core.training.state import TrainState
from sae_core.training.topk_recipes import BatchTopK, TopK

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SITE = Site(0)
TOPK = {"topk": TopK(2), "no aux": TopK(2, aux=0.0), "multi": TopK(2, multi=1 / 8), "batchtopk": BatchTopK(2)}
TOPK |= {"matryoshka": EVERY["matryoshka"]}


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
    settings = config((EVERY | TOPK)[name], steps=5, clip=1.0, lr=1e-4)  # small: Adam turns rounding into whole steps
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        here, there = memory(trained(settings, "cpu")), memory(trained(settings, "cuda"))
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


# ---- editing ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def storybooks() -> dict[str, LanguageModel]:
    return {device: load_model("storybook", device=device) for device in ("cpu", "cuda")}


def same(here: torch.Tensor, there: torch.Tensor) -> None:
    assert there.device.type == "cuda" or there.is_cpu
    torch.testing.assert_close(there.cpu(), here, atol=2e-3, rtol=2e-3)


def test_patched_curves_are_those_of_a_cpu(storybooks):
    """At one site and at two jointly: what is chosen, what is read, what is estimated, and every interval's weights."""
    curves = {}
    for device, model in storybooks.items():
        pairs = IOITask.of(model).pairs(model, Corruption.SWAP, "selection", 12, seed=0)
        saes = {site: random_topk(128, 64, 8, seed=site.layer).to(device) for site in (Site(1), Site(3))}
        single, joint = PatchExperiment(model, pairs, Site(3), [Role.S2, -1]), JointExperiment(model, pairs, [*saes])
        curves[device] = []
        for patching in (single.patching(saes[Site(3)]), joint.patching(saes)):
            assert patching.corrupted.kl.device.type == device and patching.at_once > 1
            order = [*range(patching.differs.shape[1])]
            curves[device] += [
                patching.first_order(),
                torch.stack(trace(patching, order, [0, 3, len(order)]).readout, -1),
                torch.stack(patching.activation_patched(), -1),
            ]
            config = SelectionConfig(n_greedy=2, shortlist=4, n_thresholds=2)
            assert all(len(select(patching, config, seed=0).order) == len(order) for select in SELECTORS.values())
    for here, there in zip(curves["cpu"], curves["cuda"], strict=True):
        same(here, there)


def test_every_kind_of_edit_works_while_generating(storybooks):
    prompt, texts, sizes = "Then, Mary and John went to the store.", {}, {}
    for device, model in storybooks.items():
        tokens = torch.tensor([[model.bos_id, *model.to_ids(prompt)]])
        h, sae = model.record(tokens, [Site(2)])[Site(2)], random_topk(128).to(device)
        x, labels = h[0], (torch.arange(h.shape[1]) % 2).to(device)
        edits = [
            patch_features(Site(2), sae, range(8), h),
            Scaled(scale(Site(2), sae, range(8, 24), 0.5), 2.0),
            AddDirection(Site(2), x[3] / 4, mask=Onward(tokens != model.bos_id)),
            mean_difference(Site(3), model.record(tokens, [Site(3)])[Site(3)][0], labels),
            Splice(Site(4), random_topk(128, 256, 32).to(device)),
        ]
        with model.hooks(*edits):
            texts[device] = generate(model, tokens.tolist(), 4, seed=0, sampling=Sampling(temperature=0.0))
        sizes[device] = edit_sizes(model, tokens, edits)
    assert texts["cpu"] == texts["cuda"]
    same(sizes["cpu"], sizes["cuda"])


def test_dose_and_response_are_those_of_a_cpu(storybooks):
    doses = {}
    for device, model in storybooks.items():
        site = Site(3)
        saes = {site: random_topk(128, 64, 16).to(device)}
        contexts = Text("storybook", 32, True, 12 * 32).contexts(model)
        text, held = (read_features(model, saes, [FeatureId(site, 5)], part) for part in contexts.split(6))
        config = DoseConfig(contexts=6, random_draws=1)
        response = dose_response(model, Steering(saes, text, Mode.CLAMP), (0.5, 1.0), held, config)
        doses[device] = torch.tensor([[dose.logit.value, dose.kl.value, dose.edit_size] for dose in response.doses])
    assert len(doses["cpu"]) == 6
    same(doses["cpu"], doses["cuda"])
