"""Models that several test files share."""

import pytest
import torch
from tiny import KINDS, write_tiny

from sae_core.model.language_model import LanguageModel, load_model


@pytest.fixture(scope="session", autouse=True)
def _quiet_and_small():
    """No progress bars; one thread, since matrices this small only wait for each other on shared cores."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def storybook() -> LanguageModel:
    return load_model("storybook", device="cpu")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Directories with tiny random models, by kind."""
    return {kind: write_tiny(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="session")
def tiny_models(checkpoints) -> dict[str, LanguageModel]:
    """The tiny random models, loaded as users load them. Tests leave them as they are."""
    return {kind: load_model(folder, device="cpu") for kind, folder in checkpoints.items()}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def tiny(tiny_models, kind) -> LanguageModel:
    """Each of the tiny models in turn."""
    return tiny_models[kind]
