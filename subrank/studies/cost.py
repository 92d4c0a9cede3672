"""How long a study takes, said before it begins: a few steps of each of its parts are timed, and thrown away."""

import time
from collections.abc import Iterator, Mapping
from itertools import islice

from sae_core.progress import OnProgress, Progress, duration

WARM, TIMED = 3, 10
"""Steps that are run before the clock, and on it, where steps are short."""


def announce(
    parts: Mapping[str, tuple[Iterator[object], int]],
    on_progress: OnProgress,
    *,
    warm: int = WARM,
    timed: int = TIMED,
) -> None:
    """Say how long the parts take together, and what they are: by its words each part's steps, and how many it has."""
    seconds = 0.0
    for steps, n in parts.values():
        for _ in islice(steps, warm):
            pass
        begun = time.perf_counter()
        n_timed = sum(1 for _ in islice(steps, timed))
        seconds += n * (time.perf_counter() - begun) / max(1, n_timed)
    on_progress(Progress(f"about {duration(seconds)}: {'; '.join(parts)}", 0, None))
