"""Loggers take the numbers of training at the steps at which they are looked at, and cost it nothing."""

import json
import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
from planted import unchecked
from tiny import user_error
from trained import config, finish, memory, same, small

from sae_core.training.loop import start, train
from subrank.cli.training_log import Log
from subrank.loggers import Logger, Loggers, ready, rows_of

CONFIG = {"model": "/somewhere/tiny model", "members": []}


class Recorder:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}
        self.closed = 0

    def log(self, step, numbers) -> None:
        self.steps[step] = dict(numbers)

    def close(self) -> None:
        self.closed += 1


class Failing(Recorder):
    """One that fails at its second step."""

    def log(self, step, numbers) -> None:
        if self.steps:
            raise ConnectionError("the service is gone\nfor good")
        super().log(step, numbers)


@pytest.fixture
def stubs(monkeypatch) -> dict[str, list]:
    """wandb, trackio and tensorboard, as far as they are called; what they are called with."""
    calls: dict[str, list] = {name: [] for name in ("wandb", "trackio", "tensorboard")}
    for name in ("wandb", "trackio"):
        module, kept = ModuleType(name), calls[name]
        module.init = lambda kept=kept, **how: kept.append(("init", how))
        module.log = lambda numbers, step, kept=kept: kept.append((step, numbers))
        module.finish = lambda kept=kept: kept.append("finish")
        monkeypatch.setitem(sys.modules, name, module)

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls["tensorboard"].append(("init", {"folder": folder, "purge_step": purge_step}))

        def add_scalar(self, name, value, step):
            calls["tensorboard"].append((step, {name: value}))

        def close(self):
            calls["tensorboard"].append("finish")

    board = ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    return calls


def trained(loggers: Loggers, *configs):
    stream = small()
    with unchecked():
        state = start(stream, *(configs or [config(steps=34)]))
        for step in train(stream, state):
            loggers.add(step, state)
    loggers.close()
    return state


def test_a_logger_gets_what_the_log_gets(tmp_path):
    stream, recorder = small(), Recorder()
    state = start(stream, config(steps=34))
    log, loggers = Log(tmp_path / "log.jsonl", state), Loggers.begin(recorder, CONFIG, 0)
    with unchecked():
        for step in train(stream, state):
            log.add(step)
            loggers.add(step, state)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [*recorder.steps] == sorted({row["step"] for row in rows}) == [32, 34]
    for row in rows:
        numbers = recorder.steps[row["step"]]
        assert numbers["tokens"] == row["tokens"]
        assert all(numbers[f"{row['site']}/{name}"] == row[name] for name in ("loss", "fvu", "l0", "dead", "lr"))


def test_the_learning_rate_is_that_of_the_whole_dictionary():
    """It was that of as many latents as a process has."""
    state = start(small(), config(steps=1, lr=None))
    (step,) = train(small(), state)
    rates = {row["lr"] for row in rows_of(step, state)}
    for at_site in state.members[0].sites.values():
        at_site.n_latents *= 4
    assert {row["lr"] for row in rows_of(step, state)} == {rate / 2 for rate in rates}


def test_members_of_a_sweep_are_told_apart():
    recorder = Recorder()
    state = trained(Loggers({"it": recorder}), config(steps=33), config(steps=33, seed=1))
    names = {name.rpartition("/")[0] for name in recorder.steps[33]} - {""}
    assert names == {f"{member.name}/{site}" for member in state.members for site in member.sites}


def test_training_is_the_same_whoever_listens(caplog):
    alone = start(small(), config(steps=34))
    finish(small(), alone)
    with caplog.at_level(logging.WARNING):
        heard = trained(Loggers({"one": Recorder(), "other": Failing()}))
    assert same(memory(alone), memory(heard))


def test_a_logger_that_fails_is_left_out_with_one_warning(caplog):
    good, bad = Recorder(), Failing()
    with caplog.at_level(logging.WARNING):
        state = trained(Loggers({"good": good, "bad": bad}))
    assert state.step == 34 and [*good.steps] == [32, 34] and good.closed == 1
    assert [*bad.steps] == [32]
    (record,) = caplog.records
    assert "bad" in record.getMessage() and "the service is gone)" in record.getMessage()


# ---- by name ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_each_service_is_told_of_the_run_then_of_steps_then_of_the_end(stubs, tmp_path, name):
    trained(Loggers.begin(name, CONFIG, 0, tmp_path))
    (what, how), *rest, end = stubs[name]
    assert (what, end) == ("init", "finish") and [*dict.fromkeys(step for step, _ in rest)] == [32, 34]
    assert "resid_post.0/fvu" in {key for _, numbers in rest for key in numbers}
    kept = json.loads((tmp_path / "loggers.json").read_text())["name"]
    assert kept.startswith("tiny-model-")
    if name == "tensorboard":
        assert how == {"folder": str(tmp_path / "tensorboard"), "purge_step": None}
    else:
        assert (how["name"], how["resume"], how["config"]) == (kept, "allow", CONFIG)
        assert how.get("id") == (kept if name == "wandb" else None)


def test_a_resumed_run_goes_on_under_its_name_at_its_step(stubs, tmp_path):
    both = ["wandb", "tensorboard"]
    for step in (0, 64, 96):
        Loggers.begin(both, CONFIG, step, tmp_path).close()
    runs = [how["id"] for what, how in filter(lambda call: call[0] == "init", stubs["wandb"])]
    purged = [call[1]["purge_step"] for call in stubs["tensorboard"] if call[0] == "init"]
    assert len({*runs}) == 1 and purged == [None, 65, 97]
    Loggers.begin(both, CONFIG, 0, tmp_path).close()  # control: begun anew
    assert len({how["id"] for what, how in filter(lambda call: call[0] == "init", stubs["wandb"])}) == 2
    (tmp_path / "loggers.json").write_text('{"name": "../../up"}')
    Loggers.begin(both, CONFIG, 32, tmp_path).close()
    assert ".." not in stubs["wandb"][-2][1]["id"]


def test_what_cannot_begin_is_said_before_training(stubs, monkeypatch, tmp_path):
    def refuse(**how):
        raise RuntimeError("api_key not configured\nrun login")

    monkeypatch.setattr(sys.modules["trackio"], "init", refuse)
    with user_error("--log trackio cannot begin: api_key not configured;", "leave it out"):
        Loggers.begin(["wandb", "trackio"], CONFIG, 0, tmp_path)
    assert stubs["wandb"][-1] == "finish"


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_package_that_is_missing_is_named_with_the_way_out(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with user_error(f"--log {name}", f"pip install {name}", "leave it out"):
        ready(name)


def test_what_is_no_logger_is_refused():
    with user_error("no logger 'wandbb'", "wandb"):
        ready(["wandbb"])
    for other in (3, None, {"wandb"}):
        with user_error("is no logger"):
            ready(other)
    with user_error("is no logger", "close()"):
        ready([SimpleNamespace(log=print)])
    assert isinstance(Recorder(), Logger) and not ready(())
