"""A verb that is killed at any moment, and started again by the same command, ends as if nothing had happened.

By default one verb is killed twice; `make kills` kills every verb 30 times.
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from processes import ended, lasting, run, started
from tiny import write_tiny
from verbs import LONG_VERBS

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"), "neox")


@pytest.mark.slow
def test_killed_at_random_and_started_again(killed_verb, n_kills, model, tmp_path):
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
