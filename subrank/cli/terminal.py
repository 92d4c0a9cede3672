"""What the person at the terminal sees and presses: lines of progress, a bar, Ctrl-C."""

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


def last_of(stages: Iterator[Any]) -> Any:
    """Say every line of progress; return the result that comes last."""
    for stage in stages:
        if not isinstance(stage, str):
            return stage
        say("  " + stage)
    raise AssertionError("an experiment ended without a result")


def progress(steps: Iterator[Any], total: int, done: int) -> Iterator[Any]:
    """Steps of training, with a bar on a terminal and a plain line per tenth elsewhere."""
    from tqdm import tqdm

    bar = tqdm(total=total, initial=done, unit="step", disable=not sys.stderr.isatty())
    with bar:
        for step in steps:
            bar.update(1)
            told = step.step % max(1, total // 10) == 0 or step.step == total
            if told if bar.disable else step.step % 16 == 0:  # numbers are read no more often than they are shown
                rows = [row for sites in step.numbers() for row in sites.values()]
                fvu, l0 = (sum(row[name] for row in rows) / len(rows) for name in ("fvu", "l0"))
                line = f"FVU {fvu:.3f}, L0 {l0:.1f}, dead {sum(row['dead'] for row in rows)}"
                if bar.disable:
                    say(f"  step {step.step}/{total}: {line}")
                else:
                    bar.set_postfix_str(line, refresh=False)
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
