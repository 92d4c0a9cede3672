"""What long work says of itself while it runs: the stage that begins, and how many there are.

Functions that take long accept `on_progress`, call it before each stage, and return their result. Who calls them
makes a bar, a line or nothing of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A stage that begins."""

    stage: str
    """What is done next, in words."""
    done: int
    """Stages of this piece of work that are finished."""
    total: int | None
    """How many there are; None where that shows only at the end."""
    share: float | None = None
    """Of the whole work what is finished, where stages are known to differ; None: all count alike."""

    @property
    def finished(self) -> float:
        """The share of the work that is finished; 0 where nobody knows how much there is."""
        if self.share is not None:
            return self.share
        return self.done / self.total if self.total else 0.0


OnProgress = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """An `on_progress` that says nothing."""


class Stages:
    """Counts the stages of one piece of work and reports each as it begins.

    `costs` are what each stage costs, in any unit, where that is known to differ.
    """

    def __init__(
        self, on_progress: OnProgress = silent, total: int | None = None, costs: Sequence[float] | None = None
    ):
        self._report, self._total, self._done = on_progress, total or (len(costs) if costs else None), 0
        self._costs = costs or ()

    def begin(self, stage: str) -> None:
        """Report that the stage before is finished, and that `stage` begins."""
        whole = sum(self._costs)
        share = sum(self._costs[: self._done]) / whole if whole else None
        self._report(Progress(stage, self._done, self._total, share))
        self._done += 1


def duration(seconds: float) -> str:
    """Seconds in words, to the precision that an estimate has."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
