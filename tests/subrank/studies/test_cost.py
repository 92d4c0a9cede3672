"""What a study takes is told from few steps: of long ones from one."""

import re
import time

from subrank.studies.cost import TIMED, WARM, announce


def steps(seconds: float, run: list[int]):
    for number in range(100):
        time.sleep(seconds)
        run.append(number)
        yield number


def test_long_steps_are_run_once_before_the_clock_and_once_on_it():
    short, long, said = [], [], []
    announce({"short": (steps(0.0, short), 5), "long": (steps(0.02, long), 1000)}, said.append, enough=0.01)
    assert len(long) == 2 and 2 < len(short) <= WARM + TIMED
    (progress,) = said
    told = re.fullmatch(r"about (\d+) s: short; long", progress.stage)
    assert told and int(told[1]) >= 20
