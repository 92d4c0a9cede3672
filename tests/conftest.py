"""What test files share: models, the trained set, and the options and markers of the suite."""

import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from planted import unchecked
from tiny import KINDS, write_tiny

from sae_core.model.language_model import LanguageModel, load_model

MARKED_BY_FIXTURE = {"browser": "browser", "training_seed": "trained", "trained_set": "slow"}
"""A test that asks for the fixture on the left, directly or not, carries the marker on the right."""


def pytest_addoption(parser):
    parser.addoption("--seeds", type=int, default=1, help="run tests of trained dictionaries with this many seeds")


def pytest_generate_tests(metafunc):
    if "training_seed" in metafunc.fixturenames:
        n_seeds = metafunc.config.getoption("seeds")
        metafunc.parametrize("training_seed", range(n_seeds), ids=lambda seed: f"seed{seed}", scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """First, so that `-m trained` sees the markers."""
    for item in items:
        for fixture, marker in MARKED_BY_FIXTURE.items():
            if fixture in item.fixturenames:
                item.add_marker(marker)


def pytest_assertion_pass(item, lineno, orig, expl):
    """Keep what a trained test compared, so that margins can be read: CONTRIBUTING.md says how."""
    if "training_seed" in item.fixturenames:
        item.user_properties.append((f"line {lineno}", expl))


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
def trained_set(training_seed, tmp_path_factory) -> Path:
    """Dictionaries for every layer of storybook, trained once per seed for all workers of a run. Tests only read it."""
    from subrank.cli import command

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # each worker's own folder lies in that of the run
    folder = shared / f"trained-set-{training_seed}"
    options = ["--tokens", "60000", "--seed", str(training_seed)]
    with FileLock(f"{folder}.lock"), unchecked():
        if not (folder / "result.json").is_file():
            assert command.main(["train", "storybook", "--out", str(folder), *options]) == 0
    return folder


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
