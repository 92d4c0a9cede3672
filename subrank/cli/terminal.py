"""What the person at the terminal sees: lines of progress, a bar."""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_core.marks import marked
from sae_core.progress import OnProgress, Progress
from subrank.progress import lines, steady

if TYPE_CHECKING:
    from subrank.result import Result


def say(line: str) -> None:
    """One line of progress, with marks for what cannot be seen."""
    print(marked(line), flush=True)


def say_results(result: "Result", page: Path) -> int:
    """The last lines of a verb: whether the numbers are rough or wrong, and where they are; returns its exit status."""
    for line in filter(None, (result.note(), result.check and result.check.line())):
        say(line)
    say(f"results: {page}")
    return 1 if result.check and result.check.disagreeing else 0


def reporting() -> AbstractContextManager[OnProgress]:
    """Within the block: a line for each stage that begins, and every 20 s that it goes on."""
    return lines(say)


def colourful() -> bool:
    """Whether the terminal shows colours, and nothing asks for none."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def steps_shown(steps: Iterator[Any], total: int, done: int) -> Iterator[Any]:
    """Steps of training, with a bar on a terminal; elsewhere a line per tenth, and every 20 s that it goes on."""
    from subrank.experiments.training import summary

    # numbers are read, which a GPU waits for, no more often than they are shown
    if sys.stderr.isatty():
        from tqdm import tqdm

        with steady(tqdm(total=total, initial=done, unit="step")) as bar:
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
