"""A verb that is killed at any moment, and started again by the same command, ends as if nothing had happened.

By default one verb is killed twice; `make kills` kills every verb 30 times.
"""

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from mortal import contents
from planted import unchecked
from tiny import write_tiny
from verbs import LONG_VERBS

from subrank.cli import command

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TIMED, PLOT_ID = {"written", "seconds"}, re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""What differs between two runs in any case."""


def started(arguments: Sequence[str]) -> int:
    """The number of a new process that runs the command."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command takes it, as of a new process
        with unchecked():
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1), os.dup2(silence, 2)
            status = command.main([*arguments])
    finally:
        os._exit(status)


def ended(process: int) -> int:
    """Its exit status, minus the signal's number where one killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(arguments: Sequence[str]) -> None:
    assert ended(started(arguments)) == 0


def lasting(folder: Path) -> dict[str, object]:
    """What is in the folder, without what differs between any two runs."""

    def timeless(value: object) -> object:
        if isinstance(value, dict):
            return {key: timeless(each) for key, each in value.items() if key not in TIMED}
        return [timeless(each) for each in value] if isinstance(value, list) else value

    files: dict[str, object] = {name: PLOT_ID.sub(b"", content) for name, content in contents(folder).items()}
    for name, content in contents(folder).items():
        if name.endswith((".json", ".jsonl")):
            files[name] = (
                [timeless(json.loads(line)) for line in content.splitlines()]
                if name.endswith("l")
                else (timeless(json.loads(content)))
            )
    return files


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"), "neox")


@pytest.mark.slow
def test_killed_at_random_and_started_again(killed_verb, n_kills, model, drawn_stories, tmp_path):
    trained = tmp_path / "set"
    if killed_verb in ("train", "sweep"):
        first = ["train", str(model)]
    else:
        first = [killed_verb, str(trained)]
        run(["train", str(model), "--out", str(trained), *LONG_VERBS["train"]])
    straight, out = tmp_path / "straight", tmp_path / "out"
    begun = time.monotonic()
    run([*first, *LONG_VERBS[killed_verb], "--out", str(straight)])
    takes, rng, n_done = time.monotonic() - begun, random.Random(12), 0
    shutil.rmtree(trained / "survey", ignore_errors=True)
    while n_done < n_kills:
        resumed = ["--resume"] if (out / "checkpoint" / "state.json").exists() else []
        process = started([*first, *LONG_VERBS[killed_verb], "--out", str(out), *resumed])
        time.sleep(rng.uniform(0, takes))
        signum = rng.choice(SIGNALS)
        os.kill(process, signum)
        status = ended(process)
        assert status in (0, -signum, 128 + signum), (status, signum)
        n_done += status != 0
        if status == 0 or any((out / mark).exists() for mark in ("set.json", "result.json")):
            there, whole = lasting(out), lasting(straight)
            assert {name: there.get(name) for name in whole} == whole
            shutil.rmtree(out)
            shutil.rmtree(trained / "survey", ignore_errors=True)
    resumed = ["--resume"] if (out / "checkpoint" / "state.json").exists() else []
    run([*first, *LONG_VERBS[killed_verb], "--out", str(out), *resumed])
    assert lasting(out) == lasting(straight)
