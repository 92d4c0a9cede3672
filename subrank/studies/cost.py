"""How long a study takes, said before it begins: a few steps of each of its parts are timed, and thrown away."""

import time
from collections.abc import Iterator, Mapping
from itertools import islice

from sae_core.progress import OnProgress, Progress, duration

WARM, TIMED, ENOUGH = 3, 10, 1.0
"""Steps that are run before the clock and on it, at most, and seconds after which either is enough."""


def announce(
    parts: Mapping[str, tuple[Iterator[object], int]], on_progress: OnProgress, *, enough: float = ENOUGH
) -> None:
    """Say how long the parts take together, and what they are: by its words each part's steps, and how many it has."""
    seconds = 0.0
    for steps, n in parts.values():
        _few(steps, WARM, enough)
        spent, n_timed = _few(steps, TIMED, enough)
        seconds += n * spent / max(1, n_timed)
    on_progress(Progress(f"about {duration(seconds)}: {'; '.join(parts)}", 0, None))


def _few(steps: Iterator[object], most: int, enough: float) -> tuple[float, int]:
    """(Seconds, steps that were run): at most so many, and none after `enough` seconds."""
    begun, spent, n = time.perf_counter(), 0.0, 0
    for _ in islice(steps, most):
        spent, n = time.perf_counter() - begun, n + 1
        if spent > enough:
            break
    return spent, n
