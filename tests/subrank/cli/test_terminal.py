"""How training shows its progress."""

import sys
import threading
import time
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from sae_core.progress import Progress, duration
from sae_core.sites import Site
from subrank.cli.terminal import _Lines, reporting, steps_shown

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Step:
    """A step of training as `steps_shown` reads it."""

    step: int

    def numbers(self) -> list[dict]:
        return [{Site(i): {"fvu": 1 / self.step, "l0": 8.0, "dead": i} for i in range(3)}] * 2


def test_progress_is_a_line_per_tenth_or_a_bar(capsys, monkeypatch):
    steps = [Step(number) for number in range(21, 41)]
    assert list(steps_shown(iter(steps), 40, 20)) == steps
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"  step {n}/40: FVU {1 / n:.3f}, L0 8.0, dead 6" for n in (24, 28, 32, 36, 40)]

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(steps_shown(iter(steps), 40, 20)) == steps
    shown = sys.stderr.getvalue()
    assert "40/40" in shown and f"FVU {1 / 32:.3f}, L0 8.0, dead 6" in shown
    assert not capsys.readouterr().out


# ---- stages ----------------------------------------------------------------------------------------


def test_stages_say_how_much_is_left(capsys):
    """By the mean of the stages that are finished, on a clock that ticks by hand."""
    now = [0.0]
    with reporting(every=1e9, clock=lambda: now[0]) as report:
        for done, at in ((0, 0.0), (1, 40.0), (2, 120.0)):
            now[0] = at
            report(Progress(f"stage {done}", done, 4))
        now[0] = 200.0
        report(Progress("another piece of work", 0, None))
    assert capsys.readouterr().out.splitlines() == [
        "  stage 0",
        "  stage 1 (1 of 4 done, about 2 min left)",
        "  stage 2 (2 of 4 done, about 2 min left)",
        "  another piece of work",
    ]


def test_a_long_stage_says_that_it_goes_on():
    now = [0.0]
    lines = _Lines(lambda: now[0])
    assert not lines.still(20)  # nothing has begun
    lines.begin(Progress("reading", 0, 2))
    now[0] = 19.0
    assert not lines.still(20)
    now[0] = 21.0
    assert lines.still(20) == "    ... 21 s so far" and not lines.still(20)
    lines.begin(Progress("writing", 1, 2))
    now[0] = 45.0
    assert lines.still(20) == "    ... 24 s so far (1 of 2 done, about 0 s left)"


def test_the_watch_ends_with_the_block(capsys):
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), reporting(every=0.02) as report:
        report(Progress("reading", 0, None))
        time.sleep(0.2)
        raise ZeroDivisionError
    assert threading.active_count() == before and "so far" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "words"), [(3.2, "3 s"), (89.0, "89 s"), (100.0, "2 min"), (7200.0, "2.0 h")])
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
