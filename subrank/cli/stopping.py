"""Ctrl-C, and SIGTERM, which schedulers send: both end a run in the same way."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import NoReturn

Handler = Callable[[int, FrameType | None], None]


class Stopped(KeyboardInterrupt):
    """A signal asked the run to end."""

    def __init__(self, signum: int, advice: str = ""):
        super().__init__(signum)
        self.status = 128 + signum
        """The exit status that shells and schedulers know it by."""
        self.advice = advice
        """What the line that is printed ends with."""


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Within the block both signals call `handler`; those that are ignored, as in the background, still are."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def stoppable() -> AbstractContextManager[None]:
    """Within the block a signal raises `Stopped`."""
    return handled(_stop)


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(signum)


@contextmanager
def finishing_a_step() -> Iterator[Callable[[], int]]:
    """Within the block a signal only sets a flag: the function returns its number, or 0. A second one is immediate."""
    signals: list[int] = []

    def remember(signum: int, frame: FrameType | None) -> None:
        if signals:
            raise Stopped(signum)
        signals.append(signum)

    with handled(remember):
        yield lambda: signals[0] if signals else 0
