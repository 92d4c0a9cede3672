"""What is harvested beforehand is what training would have read, by whatever processes it was made."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from mortal import contents
from planted import unchecked
from processes import ended, run, started
from tiny import user_error, write_tiny

import subrank as sr
from sae_core.data.activation_cache import CachedStream
from sae_core.data.activations import ActivationStream
from sae_core.training.checkpoint import save_checkpoint
from subrank.cli.train import begin, go_on
from subrank.experiments.harvest import BlockFiller
from subrank.experiments.training import Session, run_of
from subrank.settings.fields import make
from subrank.settings.train import TrainSettings

READ = {"tokens": 3072, "text_tokens": 8192, "batch": 128, "context": 32, "memory": 1e-4, "sites": "resid_post.0-1"}
FLAGS = [text for name, value in READ.items() for text in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"), "neox")


@pytest.fixture(scope="module")
def model(folder):
    return sr.load_model(str(folder))


def trained(model, cache: Path | None) -> list[torch.Tensor]:
    session = Session.begin(model, run_of(make(TrainSettings, READ | {"k": 4}), model, "storybook"), cache=cache)
    for _ in session.steps():
        pass
    (member,) = session.state.members
    return [weight for state in member.sites.values() for weight in state.sae.parameters()]


@unchecked()
def test_training_reads_what_was_harvested_and_nothing_else(model, tmp_path, monkeypatch):
    plain = trained(model, None)
    events = []
    assert (
        sr.harvest(model, folder=tmp_path / "kept", kept="float32", on_progress=events.append, **READ)
        == tmp_path / "kept"
    )
    assert "blocks to harvest, about" in events[0].stage and "GiB" in events[0].stage and events[-1].total > 3
    sr.harvest(model, folder=tmp_path / "half", progress=False, **READ)
    monkeypatch.setattr(ActivationStream, "rows", lambda *a, **k: pytest.fail("the model was run"))
    sr.harvest(model, folder=tmp_path / "kept", kept="float32", progress=False, **READ)  # nothing is missing
    for a, b in zip(plain, trained(model, tmp_path / "kept"), strict=True):
        assert torch.equal(a, b)
    rounded = trained(model, tmp_path / "half")
    assert not torch.equal(rounded[0], plain[0])  # control
    assert all((a - b).norm() < 0.05 * b.norm() for a, b in zip(rounded, plain, strict=True) if b.ndim == 2)


@unchecked()
@pytest.mark.parametrize("memory", [3e-5, 7e-5, 1.3e-4, 4e-4])
def test_training_never_lacks_a_block(model, tmp_path, monkeypatch, memory):
    """Blocks hold no whole number of batches: what is left over of each adds up."""
    reads = READ | {"tokens": 4096, "batch": 64, "memory": memory}
    sr.harvest(model, folder=tmp_path, progress=False, **reads)
    monkeypatch.setattr(ActivationStream, "rows", lambda *a, **k: pytest.fail("the model was run"))
    session = Session.begin(model, run_of(make(TrainSettings, reads | {"k": 4}), model, "storybook"), cache=tmp_path)
    assert sum(1 for _ in session.steps()) == 64
    last = max(int(path.stem.partition("-")[2]) for path in tmp_path.glob("block-*.safetensors"))
    assert session.state.block in (last, last + 1)  # control: nor were there more than it reads


@unchecked()
def test_a_run_goes_on_with_activations_of_the_same_precision(model, tmp_path):
    sr.harvest(model, folder=tmp_path / "half", progress=False, **READ)
    run, out = run_of(make(TrainSettings, READ | {"k": 4}), model, "storybook"), tmp_path / "out"
    out.mkdir()
    session = begin(out, model, run, tmp_path / "half")
    next(session.steps())
    kept = {"contexts": session.contexts.digest, "rows": session.rows}
    save_checkpoint(session.state, run.text, session.model, out, **kept)
    with user_error("began with activations in bfloat16", "--cache"):
        go_on(out, model, run)
    assert go_on(out, model, run, tmp_path / "half").state.step == 1


def test_another_training_is_refused(model, tmp_path):
    sr.harvest(model, folder=tmp_path, progress=False, **READ)
    with user_error("other seed", "another folder"):
        sr.harvest(model, folder=tmp_path, progress=False, **READ, seed=1)
    with user_error("precision"):
        sr.harvest(model, folder=tmp_path, progress=False, **READ, kept="float32")


def test_blocks_by_number(folder, model, tmp_path, monkeypatch):
    """As an engine hands them out, in any order, some twice."""
    monkeypatch.setattr("subrank.experiments.harvest.load_model", lambda name: model)
    filler = BlockFiller(str(folder), "storybook", str(tmp_path), **READ)
    n = filler.work.n_blocks
    assert filler({"id": [*range(n - 1, 0, -1), 1]})["filled"] == [True] * (n - 1) + [False]
    assert filler.work.missing() == [0]
    filler.work.run()
    stream = filler.work.cache.stream
    assert [*CachedStream(stream, tmp_path).block(2)] and not filler.work.missing()


@pytest.mark.slow
def test_of_three_processes_one_is_killed(folder, tmp_path):
    run(["harvest", str(folder), *FLAGS, "--out", str(tmp_path / "straight")])
    together = [started(["harvest", str(folder), *FLAGS, "--out", str(tmp_path / "together")]) for _ in range(3)]
    while not [*(tmp_path / "together").glob("block-*.safetensors")]:
        time.sleep(0.01)
    os.kill(together[0], signal.SIGKILL)
    assert [ended(process) for process in together] == [-signal.SIGKILL, 0, 0]
    whole, there = contents(tmp_path / "straight"), contents(tmp_path / "together")
    assert len(whole) > 4 and {name: there.get(name) for name in whole} == whole
