"""What the person at the terminal sees and presses: lines of progress, a bar, Ctrl-C."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sae_core.progress import Progress


def say(line: str) -> None:
    """One line of progress."""
    print(line, flush=True)


def report(progress: Progress) -> None:
    """One line for each stage that begins."""
    say("  " + progress.stage)


def colourful() -> bool:
    """Whether the terminal shows colours, and nothing asks for none."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def steps_shown(steps: Iterator[Any], total: int, done: int) -> Iterator[Any]:
    """Steps of training, with a bar on a terminal and a plain line per tenth elsewhere."""
    from tqdm import tqdm

    from subrank.experiments.training import summary

    bar = tqdm(total=total, initial=done, unit="step", disable=not sys.stderr.isatty())
    with bar:
        for step in steps:
            bar.update(1)
            # numbers are read, which a GPU waits for, no more often than they are shown
            if bar.disable and (step.step % max(1, total // 10) == 0 or step.step == total):
                say(f"  step {step.step}/{total}: {summary(step)}")
            elif not bar.disable and step.step % 16 == 0:
                bar.set_postfix_str(summary(step), refresh=False)
            yield step


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C only sets a flag, which the given function reads; a second one is immediate."""
    import signal
    import threading

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
