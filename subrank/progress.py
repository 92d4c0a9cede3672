"""How long work shows that it goes on: a bar with the time left on terminals and in notebooks, elsewhere lines."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sae_core.progress import OnProgress, Progress, duration, silent

SHOWN_STEPS = 20
"""More stages than this are shown as so many lines at most, a share of them at a time."""


@contextmanager
def shown(title: str, progress: bool, on_progress: OnProgress | None, unit: str = "stage") -> Iterator[OnProgress]:
    """What an experiment reports its stages to: `on_progress`, else a bar or lines, or nothing without `progress`."""
    if on_progress is not None or not progress:
        yield on_progress or silent
    elif sys.stderr.isatty() or "ipykernel" in sys.modules:
        with _bar(title, unit) as report:
            yield report
    else:
        with lines(partial(print, file=sys.stderr, flush=True)) as report:
            yield _fewer(report)


@contextmanager
def _bar(title: str, unit: str) -> Iterator[OnProgress]:
    """A bar; what is said of the work as a whole, such as how long it takes, stands in full above it."""
    from tqdm.auto import tqdm

    with steady(tqdm(desc=title, unit=unit)) as bar:

        def report(event: Progress) -> None:
            if event.total is None:
                bar.write(f"{title}: {event.stage}", file=sys.stderr)
                return
            if event.done == 0 or bar.total != event.total:
                bar.reset(event.total)
            bar.n = event.done if event.share is None else round(event.share * event.total, 1)
            bar.set_postfix_str(event.stage[:60], refresh=True)

        yield report
        if bar.total:
            bar.update(bar.total - bar.n)


def steady(bar: Any) -> Any:
    """A tqdm bar by the clock that does not jump: it would stand still until the time of day has caught up."""
    bar._time = time.monotonic  # tqdm has no other way to say so
    bar.start_t = bar.last_print_t = time.monotonic()
    return bar


def _fewer(report: OnProgress) -> OnProgress:
    """Of many stages about `SHOWN_STEPS`; of few all."""
    shown_to = 0

    def passed_on(event: Progress) -> None:
        nonlocal shown_to
        shown_to = min(shown_to, event.done)
        ends = (0, event.total)
        if not event.total or event.done in ends or SHOWN_STEPS * (event.done - shown_to) >= event.total:
            shown_to = event.done
            report(event)

    return passed_on


@contextmanager
def lines(
    write: Callable[[str], None], every: float = 20.0, clock: Callable[[], float] = time.monotonic
) -> Iterator[OnProgress]:
    """Within the block: a line for each stage that begins, with the time left where it can be told.

    A stage that takes longer says so every `every` seconds, so that nobody wonders whether it still runs.
    """
    lock, ended, worded = threading.Lock(), threading.Event(), _Lines(clock)

    def report(progress: Progress) -> None:
        with lock:
            write(worded.begin(progress))

    def watch() -> None:
        while not ended.wait(every / 4):
            with lock:
                if line := worded.still(every):
                    write(line)

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
        """How much is left, by the time that what is finished took; nothing once that is used up."""
        done, total, finished = self.progress.done, self.progress.total, self.progress.finished
        if not finished or now - self.begun < 5:
            return ""
        left = (self.entered - self.begun) / finished * (1 - finished) - (now - self.entered)
        return f" ({done} of {total} done{f', about {duration(left)} left' if left > 0 else ''})"
