"""The capability, text and runs that tests of removals share."""

import pytest
from removal_world import CONFIG, MIDDLE, MLP

from editing.removal.measurement.cached_runs import PromptRuns
from editing.removal.measurement.damage_text import DamageText
from editing.removal.measurement.evaluation import Evaluator
from editing.removal.prompts.capability import Capability, capability_of
from sae_core.data.activations import harvest
from sae_core.data.text import Text
from sae_core.dictionaries.baselines import pca
from sae_core.sites import Site


@pytest.fixture(scope="session")
def contexts(storybook):
    return Text("storybook", 48, True, 12 * 48).contexts(storybook)


@pytest.fixture(scope="session")
def task(storybook) -> Capability:
    """Pronouns, with fewer prompts to fit erasers on than there are."""
    return capability_of("pronouns", storybook, CONFIG, most=192)


@pytest.fixture(scope="session")
def components(storybook, contexts):
    """PCA of each site."""
    return {site: pca(x) for site, x in harvest(storybook, contexts, (MIDDLE, MLP)).items()}


@pytest.fixture(scope="session")
def text(storybook, task, contexts) -> DamageText:
    return DamageText(storybook, contexts[:4], task.task_tokens)


@pytest.fixture(scope="session")
def evaluator(storybook, task, text) -> Evaluator:
    return Evaluator(storybook, task.test, text, seed=0, transfers=task.transfers, halves=task.test.halves())


@pytest.fixture(scope="session")
def runs_at_middle(storybook, task) -> PromptRuns:
    return PromptRuns.of(storybook, MIDDLE, task.selection)


@pytest.fixture(params=[MIDDLE, MLP], ids=str)
def site(request) -> Site:
    return request.param
