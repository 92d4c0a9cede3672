"""What test files share: models, the trained set, and the options and markers of the suite."""

import os
from contextlib import nullcontext
from functools import wraps
from itertools import count
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from far import FAR_IS_HERE, Device, far  # here, since a device must be known before the first backward pass
from filelock import FileLock
from planted import unchecked
from tiny import KINDS, write_tiny
from verbs import LONG_VERBS, SHORT_TRAINING, TRAINING

from sae_core.data import documents
from sae_core.model import language_model
from sae_core.model.language_model import LanguageModel, load_model

MARKED_BY_FIXTURE = {"browser": "browser", "training_seed": "trained", "trained_set": "slow", "storybook_set": "slow"}
"""A test that asks for the fixture on the left, directly or not, carries the marker on the right."""
LATER_FAMILIES = {*KINDS[1:], *list(FAMILIES)[1:], "sequential neox"}
MODEL_TESTS = Path(__file__).parent / "sae_core" / "model"
"""Where families of models are the point; elsewhere the second and later ones are slow: `make quick` runs the first."""
REST = (
    "test_examples",
    "test_real_model",
    "test_scarcity",
    "test_kills",
    "test_torchrun",
    "test_opened_sets",
    "test_explorer_picture",
    "test_explorer_views",
    "test_pages_browser",
    "test_superposition",
    "test_verbs",
    "test_gpu_model",
    "test_gpu_verbs",
    "test_far_verbs",
    "test_demo_claims",
)
REST_ROOMS = ("benchmarks", "fuzz")
"""Files and rooms that repeat on whole verbs what other tests show: `make rest`."""
SLOW = (
    "test_mistakes",
    "test_exact_routes",
    "test_hub_sets",
    "test_importing",
    "test_circuit_runs",
    "test_scaling",
    "test_survey",
    "test_recursive",
    "test_study",
    "test_loggers",
    "test_ioi",
    "test_task",
    "test_joint_experiment",
    "test_experiment",
    "test_checkpoint",
)
SLOW_ROOMS = ("checking",)
"""Files and rooms whose tests are many or whole verbs: `make quick` leaves them out."""
LONGEST = ("test_verbs", "test_examples", "test_front_door", "test_study", "test_train", "test_exact_routes")
"""Files that take longest: they begin a run, so that no worker is alone with one at its end."""


def pytest_addoption(parser):
    parser.addoption("--seeds", type=int, default=1, help="run tests of trained dictionaries with this many seeds")
    parser.addoption("--fuzz", type=int, default=1, help="so many times as many command lines and damaged files")
    parser.addoption("--kills", type=int, help="kill every verb this many times, at random; by default one, twice")


def pytest_generate_tests(metafunc):
    if "training_seed" in metafunc.fixturenames:
        n_seeds = metafunc.config.getoption("seeds")
        metafunc.parametrize("training_seed", range(n_seeds), ids=lambda seed: f"seed{seed}", scope="session")
    if "killed_verb" in metafunc.fixturenames:
        metafunc.parametrize("killed_verb", [*LONG_VERBS][: None if metafunc.config.getoption("kills") else 1])


def of_later_family(item) -> bool:
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return bool(LATER_FAMILIES & {value for value in parameters if isinstance(value, str)})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """First, so that `-m trained` sees the markers."""
    for item in items:
        for fixture, marker in MARKED_BY_FIXTURE.items():
            if fixture in item.fixturenames:
                item.add_marker(marker)
        if of_later_family(item) and MODEL_TESTS not in item.path.parents:
            item.add_marker("slow")
        if (item.path.stem in REST or {*REST_ROOMS} & {*item.path.parts}) and "readme" not in item.name:
            item.add_marker("rest")
        if item.path.stem in SLOW or {*SLOW_ROOMS} & {*item.path.parts}:
            item.add_marker("slow")
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


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


@pytest.fixture(autouse=True)
def _shapes_checked_on_the_first_family(request):
    """They are the same on the others, where only numbers can differ."""
    with unchecked() if of_later_family(request.node) else nullcontext():
        yield


@pytest.fixture(scope="session", autouse=True)
def _bundled_model_loaded_once():
    """Whoever asks for storybook in the same way has the same object: verbs leave their model as they find it."""
    from_disk, loaded = language_model.load_model, {}

    @wraps(from_disk)
    def load(name, **how):
        key = repr(sorted(how.items()))
        if not isinstance(name, str) or name != "storybook":
            return from_disk(name, **how)
        if key not in loaded:
            loaded[key] = from_disk(name, **how)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "load_model", load)
        yield


def needs(name: str, is_here: bool):
    return pytest.mark.skipif(not is_here, reason=f"there is no {name} device here")


@pytest.fixture(
    scope="module",
    params=[
        *(["far"] if FAR_IS_HERE else []),
        pytest.param("cuda", marks=[pytest.mark.gpu, needs("cuda", torch.cuda.is_available())]),
    ],
)
def device(request):
    """A GPU where there is one, and a device that stands for it (`far.py`)."""
    with far() if request.param == "far" else nullcontext([]) as reads:
        yield Device(request.param, reads)


@pytest.fixture(scope="session")
def times(request) -> int:
    """How many times as much as usual the fuzz is to try."""
    return request.config.getoption("fuzz")


@pytest.fixture(scope="session")
def n_kills(request) -> int:
    return request.config.getoption("kills") or 2


@pytest.fixture(scope="session")
def storybook() -> LanguageModel:
    return load_model("storybook", device="cpu")


@pytest.fixture(scope="session", autouse=True)
def _stories_drawn_once():
    """The grammar's documents are drawn once, for all that read them from the start."""
    drawn, source = [], documents._storybook()

    def from_the_start():
        for place in count():
            if place == len(drawn):
                drawn.append(next(source))
            yield drawn[place]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "_storybook", from_the_start)
        yield


@pytest.fixture(scope="session")
def trained_set(training_seed, tmp_path_factory) -> Path:
    """Dictionaries for every layer of storybook; for tests of what they explain. Tests only read it."""
    return set_of_seed(training_seed, TRAINING, tmp_path_factory)


@pytest.fixture(scope="session")
def storybook_set(tmp_path_factory) -> Path:
    """Shorter trained, with one seed, for tests of what is computed with any set."""
    return set_of_seed(0, SHORT_TRAINING, tmp_path_factory)


def set_of_seed(seed: int, training: dict[str, int], tmp_path_factory) -> Path:
    """Trained by the command, once per seed and settings for all workers of a run."""
    from subrank.cli import command

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # each worker's own folder lies in that of the run
    folder = shared / f"trained-set-{seed}-{training['tokens']}"
    options = [str(option) for name, value in training.items() for option in (f"--{name}", value)]
    with FileLock(f"{folder}.lock"), unchecked():
        if not (folder / "result.json").is_file():
            assert command.main(["train", "storybook", "--out", str(folder), "--seed", str(seed), *options]) == 0
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
