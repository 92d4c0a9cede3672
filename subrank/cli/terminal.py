"""What the person at the terminal sees and presses: lines of progress, a bar, Ctrl-C."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_core.progress import OnProgress, Progress, duration

if TYPE_CHECKING:
    from subrank.result import Result


def say(line: str) -> None:
    """One line of progress."""
    print(line, flush=True)


def say_results(result: "Result", page: Path) -> None:
    """The last lines of a verb: whether the numbers are rough, and where they are."""
    if result.note():
        say(result.note())
    say(f"results: {page}")


@contextmanager
def reporting(every: float = 20.0, clock: Callable[[], float] = time.monotonic) -> Iterator[OnProgress]:
    """Within the block: a line for each stage that begins, with the time left where it can be told.

    A stage that takes longer says so every `every` seconds, so that nobody wonders whether it still runs.
    """
    lock, ended, lines = threading.Lock(), threading.Event(), _Lines(clock)

    def report(progress: Progress) -> None:
        with lock:
            say(lines.begin(progress))

    def watch() -> None:
        while not ended.wait(every / 4):
            with lock:
                if line := lines.still(every):
                    say(line)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield report
    finally:
        ended.set()
        watcher.join()


class _Lines:
    """What is said of stages, by a clock in seconds."""

    def __init__(self, clock: Callable[[], float]):
        self.clock, self.begun, self.last, self.entered = clock, clock(), clock(), clock()
        self.progress = Progress("", 0, None)

    def begin(self, progress: Progress) -> str:
        """The line for a stage that begins."""
        now = self.clock()
        if progress.done == 0:
            self.begun = now
        self.progress, self.last, self.entered = progress, now, now
        return f"  {progress.stage}{self._left(now)}"

    def still(self, every: float) -> str:
        """A line for the stage that goes on, where none was said for `every` seconds; else empty."""
        now = self.clock()
        if not self.progress.stage or now - self.last < every:
            return ""
        self.last = now
        return f"    ... {duration(now - self.entered)} so far{self._left(now)}"

    def _left(self, now: float) -> str:
        """How much is left, by the mean time of the stages that are finished."""
        done, total = self.progress.done, self.progress.total
        if not done or not total or now - self.begun < 5:
            return ""
        left = max(0.0, (self.entered - self.begun) / done * (total - done) - (now - self.entered))
        return f" ({done} of {total} done, about {duration(left)} left)"


def colourful() -> bool:
    """Whether the terminal shows colours, and nothing asks for none."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def steps_shown(steps: Iterator[Any], total: int, done: int) -> Iterator[Any]:
    """Steps of training, with a bar on a terminal; elsewhere a line per tenth, and every 20 s that it goes on."""
    from subrank.experiments.training import summary

    # numbers are read, which a GPU waits for, no more often than they are shown
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, initial=done, unit="step") as bar:
            for step in steps:
                bar.update(1)
                if step.step % 16 == 0:
                    bar.set_postfix_str(summary(step), refresh=False)
                yield step
        return
    with reporting() as report:
        for step in steps:
            if step.step % max(1, total // 10) == 0 or step.step == total:
                report(Progress(f"step {step.step}/{total}: {summary(step)}", step.step - done, total - done))
            yield step


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C only sets a flag, which the given function reads; a second one is immediate."""
    import signal

    stopped = False

    def stop(signum, frame) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)
