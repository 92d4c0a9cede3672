"""What long work says while it runs: lines, a bar."""

import sys
import threading
import time
from io import StringIO

import pytest

from sae_core.progress import Progress, Stages, duration
from subrank.progress import SHOWN_STEPS, _Lines, lines, shown

SAYS = "about 3 min: 19,200 prompts x 12 sets of features behind each of the four sites; 128 contexts spliced at each"


class Terminal(StringIO):
    """Something that is written to as a terminal is."""

    def isatty(self) -> bool:
        return True


def test_what_is_said_beforehand_is_read_in_full(capsys, monkeypatch):
    """From Python as from the command, on terminals and elsewhere."""
    with shown("ioi", True, None) as report:
        report(Progress(SAYS, 0, None))
    assert capsys.readouterr().err == f"  {SAYS}\n"
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with shown("ioi", True, None) as report:
        report(Progress(SAYS, 0, None))
        report(Progress("a stage", 1, 2))
    assert f"ioi: {SAYS}\n" in terminal.getvalue() and "1/2" in terminal.getvalue()


def test_many_stages_are_few_lines_and_few_stages_all(capsys):
    for total in (SHOWN_STEPS // 2, 50 * SHOWN_STEPS):
        with shown("train", True, None) as report:
            for step in range(1, total + 1):
                report(Progress(f"step {step}", step, total))
        written = capsys.readouterr().err.splitlines()
        assert len(written) == min(total, SHOWN_STEPS) and written[-1].startswith(f"  step {total}")


def test_nothing_is_said_where_nothing_is_asked_for(capsys):
    heard = []
    for progress, on_progress in ((False, None), (True, heard.append), (False, heard.append)):
        with shown("ioi", progress, on_progress) as report:
            report(Progress("a stage", 0, 1))
    assert len(heard) == 2 and capsys.readouterr() == ("", "")


def test_stages_say_how_much_is_left(capsys):
    """By the mean of the stages that are finished, on a clock that ticks by hand."""
    now = [0.0]
    with lines(print, every=1e9, clock=lambda: now[0]) as report:
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


def test_where_stages_differ_the_time_left_is_by_what_they_cost():
    """A first stage that is a hundredth of the work and takes 6 s leaves 99 times as long, not as long again."""
    now = iter([0.0, 0.0, 0.0, 0.0, 6.0])
    worded, events = _Lines(lambda: next(now)), []
    stages = Stages(events.append, costs=[1.0, 99.0])
    stages.begin("a score")
    stages.begin("all else")
    assert [event.finished for event in events] == [0, 0.01] and events[1].total == 2
    worded.begin(events[0])
    assert worded.begin(events[1]) == "  all else (1 of 2 done, about 10 min left)"


def test_a_long_stage_says_that_it_goes_on():
    now = [0.0]
    worded = _Lines(lambda: now[0])
    assert not worded.still(20)  # nothing has begun
    worded.begin(Progress("reading", 0, 2))
    now[0] = 19.0
    assert not worded.still(20)
    now[0] = 21.0
    assert worded.still(20) == "    ... 21 s so far" and not worded.still(20)
    worded.begin(Progress("writing", 1, 2))
    now[0] = 45.0
    assert worded.still(20) == "    ... 24 s so far (1 of 2 done)"  # longer than was thought: nothing is known


def test_the_watch_ends_with_the_block(capsys):
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), lines(print, every=0.02) as report:
        report(Progress("reading", 0, None))
        time.sleep(0.2)
        raise ZeroDivisionError
    assert threading.active_count() == before and "so far" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "words"), [(3.2, "3 s"), (89.0, "89 s"), (100.0, "2 min"), (7200.0, "2.0 h")])
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
