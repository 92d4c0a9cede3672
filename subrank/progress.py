"""How long work shows that it goes on: a tqdm bar with the time left, in notebooks as on terminals."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sae_core.progress import OnProgress, Progress, silent


@contextmanager
def shown(title: str, progress: bool, on_progress: OnProgress | None, unit: str = "stage") -> Iterator[OnProgress]:
    """What an experiment reports its stages to: `on_progress`, else a bar, or nothing without `progress`."""
    if on_progress is not None or not progress:
        yield on_progress or silent
        return
    from tqdm.auto import tqdm

    with tqdm(desc=title, unit=unit, mininterval=0.1 if sys.stderr.isatty() else 20) as bar:

        def show(event: Progress) -> None:
            if event.done == 0:
                bar.reset()
                bar.total = event.total
            bar.update(event.done - bar.n)
            bar.set_postfix_str(event.stage[:60], refresh=True)

        yield show
        if bar.total:
            bar.update(bar.total - bar.n)
