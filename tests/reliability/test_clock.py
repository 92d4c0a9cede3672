"""A clock that is set while a verb runs moves nothing: checkpoints, time left and bars go by the time that passes."""

import io
import time
from itertools import cycle
from types import SimpleNamespace

import pytest
from tqdm import std as tqdm_std
from tqdm import tqdm
from trained import config, small

from sae_core.progress import Progress
from sae_core.training.loop import start
from sae_core.training.loop import train as train_steps
from subrank.cli import train
from subrank.progress import lines, steady

DECADE = 10 * 365 * 86_400.0


@pytest.fixture
def jumping(monkeypatch):
    """The time of day is ten years off each time that it is asked for, to and fro."""
    now, jumps = time.time(), cycle((0.0, DECADE, -DECADE))
    monkeypatch.setattr(time, "time", lambda: now + next(jumps))
    first, second, third = time.time(), time.time(), time.time()
    assert second - first > 60 and third < second  # who went by it would be misled


@pytest.mark.parametrize(("every", "n"), [(3600.0, 1), (0.0, 7)])
def test_checkpoints_by_time(jumping, monkeypatch, tmp_path, every, n):
    """Of 6 steps one at the end, or after each."""
    saved = []

    def save(state, *places, **contents) -> None:
        saved.append(state.step)

    monkeypatch.setattr("sae_core.training.checkpoint.save_checkpoint", save)
    stream = small()
    state = start(stream, config(steps=6))
    run = SimpleNamespace(members=[state.members[0].config], text=None, to_json=dict)
    contexts = SimpleNamespace(digest="")
    session = SimpleNamespace(
        rows="float32", state=state, run=run, model=None, contexts=contexts, steps=lambda: train_steps(stream, state)
    )
    train._take_steps(tmp_path, session, every)
    assert len(saved) == n and saved[-1] == 6 and saved == sorted(saved)


def test_lines_say_nothing_of_years(jumping):
    written: list[str] = []
    with lines(written.append, every=0.02) as report:
        for done in range(3):
            report(Progress(f"stage {done}", done, 3))
            time.sleep(0.03)
    assert [line for line in written if "stage 2" in line] == ["  stage 2"]
    assert all("0 s so far" in line for line in written if "so far" in line)


def test_a_bar_goes_on(jumping, monkeypatch):
    monkeypatch.setattr(tqdm_std, "time", time.time)  # as it is imported there
    plain, watched = (tqdm(total=10, file=io.StringIO()) for _ in range(2))
    with plain, steady(watched):
        elapsed = [[bar.format_dict["elapsed"] for _ in range(3)] for bar in (plain, watched)]
    assert all(0 <= seconds < 60 for seconds in elapsed[1])
    assert any(abs(seconds) > 60 for seconds in elapsed[0])  # control
