"""Off the CPU, the language model, patches, edits and generation give the numbers of a CPU."""

import pytest
import torch
from handmade import random_topk

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
from sae_core.model.generation import Sampling, generate
from sae_core.model.language_model import LanguageModel, load_model
from sae_core.sites import FeatureId, Site


@pytest.fixture(scope="module")
def storybooks(device) -> dict[str, LanguageModel]:
    return {name: load_model("storybook", device=name) for name in ("cpu", device.name)}


def same(here: torch.Tensor, there: torch.Tensor) -> None:
    torch.testing.assert_close(there.cpu(), here, atol=2e-3, rtol=2e-3)


def test_patched_curves_are_those_of_a_cpu(storybooks):
    """At one site and at two jointly: what is chosen, what is read, what is estimated, and every interval's weights."""
    curves = {}
    for name, model in storybooks.items():
        pairs = IOITask.of(model).pairs(model, Corruption.SWAP, "selection", 12, seed=0)
        saes = {site: random_topk(128, 64, 8, seed=site.layer).to(name) for site in (Site(1), Site(3))}
        single, joint = PatchExperiment(model, pairs, Site(3), [Role.S2, -1]), JointExperiment(model, pairs, [*saes])
        curves[name] = []
        for patching in (single.patching(saes[Site(3)]), joint.patching(saes)):
            assert patching.corrupted.kl.device.type == name and patching.at_once > 1
            order = [*range(patching.differs.shape[1])]
            curves[name] += [
                patching.first_order(),
                torch.stack(trace(patching, order, [0, 3, len(order)]).readout, -1),
                torch.stack(patching.activation_patched(), -1),
            ]
            config = SelectionConfig(n_greedy=2, shortlist=4, n_thresholds=2)
            assert all(len(select(patching, config, seed=0).order) == len(order) for select in SELECTORS.values())
    for here, there in zip(*curves.values(), strict=True):
        same(here, there)


def test_every_kind_of_edit_works_while_generating(storybooks):
    prompt, texts, sizes = "Then, Mary and John went to the store.", {}, {}
    for name, model in storybooks.items():
        tokens = torch.tensor([[model.bos_id, *model.to_ids(prompt)]])
        h, sae = model.record(tokens, [Site(2)])[Site(2)], random_topk(128).to(name)
        x, labels = h[0], (torch.arange(h.shape[1]) % 2).to(name)
        edits = [
            patch_features(Site(2), sae, range(8), h),
            Scaled(scale(Site(2), sae, range(8, 24), 0.5), 2.0),
            AddDirection(Site(2), x[3] / 4, mask=Onward(tokens != model.bos_id)),
            mean_difference(Site(3), model.record(tokens, [Site(3)])[Site(3)][0], labels),
            Splice(Site(4), random_topk(128, 256, 32).to(name)),
        ]
        with model.hooks(*edits):
            texts[name] = generate(model, tokens.tolist(), 4, seed=0, sampling=Sampling(temperature=0.0))
        sizes[name] = edit_sizes(model, tokens, edits)
    assert len(set(map(str, texts.values()))) == 1
    same(*sizes.values())


def test_dose_and_response_are_those_of_a_cpu(storybooks):
    doses = {}
    for name, model in storybooks.items():
        site = Site(3)
        saes = {site: random_topk(128, 64, 16).to(name)}
        contexts = Text("storybook", 32, True, 12 * 32).contexts(model)
        text, held = (read_features(model, saes, [FeatureId(site, 5)], part) for part in contexts.split(6))
        config = DoseConfig(contexts=6, random_draws=1)
        response = dose_response(model, Steering(saes, text, Mode.CLAMP), (0.5, 1.0), held, config)
        doses[name] = torch.tensor([[dose.logit.value, dose.kl.value, dose.edit_size] for dose in response.doses])
    assert len(doses["cpu"]) == 6
    same(*doses.values())
