"""`sr.harvest`, `subrank harvest`: the activations that a training reads, kept on disk before anything is trained.

Any number of processes may fill a folder together, on machines that share its disk: each takes blocks that lie there
not yet and that no other process is at (`sae_core/data/activation_cache.py`). Then `subrank train ... --cache FOLDER`
with the same settings reads them, as often as it is run and with whatever dictionaries.
"""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sae_core.data.activation_cache import CachedStream, check_cache, disk_bytes, kept_in, n_blocks
from sae_core.data.activations import ActivationStream, seconds_per_token
from sae_core.files import user_path
from sae_core.model.language_model import LanguageModel, load_model
from sae_core.progress import OnProgress, Progress, duration, silent
from subrank.experiments.training import run_of
from subrank.progress import shown
from subrank.settings.fields import make, takes
from subrank.settings.train import HarvestSettings, TextSettings, TrainSettings
from subrank.sites import sites_of

LOOK_EVERY = 1.0
"""Seconds between looks at the blocks that other processes are at."""


@takes(HarvestSettings)
def harvest(
    model: LanguageModel,
    text: str = "storybook",
    folder: str | Path = "activations",
    *,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Path:
    """Fill `folder` with the activations of a training; returns it once every block is there, whoever made it.

    Other processes may be filling it as well. Settings that training has, too, must have its values there; a training
    that reads further makes what is missing.
    """
    work = Harvest.of(model, text, user_path(folder), make(HarvestSettings, settings))
    with shown("harvest", progress, on_progress, "block") as report:
        work.run(report)
    return work.cache.folder


@dataclass(frozen=True, eq=False)
class Harvest:
    """The blocks that a training reads, in a folder."""

    cache: CachedStream
    tokens: int
    """That are trained on."""

    @property
    def n_blocks(self) -> int:
        """How many are read for so many tokens."""
        stream = self.cache.stream
        return 1 + stream.place(n_blocks(stream, self.tokens) - 1)

    @classmethod
    def of(cls, model: LanguageModel, text: str, folder: Path, settings: HarvestSettings) -> "Harvest":
        """Raises `UserError` where the disk has no room, or the folder keeps something else."""
        shared = {each.name: getattr(settings, each.name) for each in fields(TextSettings)}
        run = run_of(TrainSettings(**shared), model, text)
        model = run.text.read_by(model)
        stream = run.stream(model, run.text.read(model).training, sites_of(model, run.sites))
        assert isinstance(stream, ActivationStream)  # as nothing trains on KL
        check_cache(stream, settings.tokens, folder, settings.kept)
        return cls(CachedStream(stream, folder, settings.kept), settings.tokens)

    def missing(self) -> list[int]:
        """The blocks that do not lie there."""
        return [block for block in range(self.n_blocks) if not self.cache.path(block).exists()]

    def run(self, on_progress: OnProgress = silent) -> None:
        """Fill blocks until none is missing, waiting at the end for those that other processes are at."""
        stream, missing = self.cache.stream, self.missing()
        if missing:
            n_tokens = len(missing) * stream.block_contexts * stream.contexts.shape[1]
            seconds = n_tokens * seconds_per_token(stream.model, stream.contexts, stream.sites)
            gib = disk_bytes(stream, self.tokens, kept_in(self.cache.folder)) / 2**30
            said = f"{len(missing)} of {self.n_blocks} blocks to harvest, about {duration(seconds)} by one process"
            on_progress(Progress(f"{said}; all take about {gib:.2g} GiB", 0, None))
        while missing := self.missing():
            here = os.getpid() % len(missing)  # processes that begin together begin at different blocks
            if not any(self._fill(block, on_progress) for block in missing[here:] + missing[:here]):
                on_progress(Progress("waiting for blocks of other processes", *self._done()))
                time.sleep(LOOK_EVERY)

    def _fill(self, block: int, on_progress: OnProgress) -> bool:
        if self.cache.path(block).exists():
            return False
        on_progress(Progress(f"block {block}", *self._done()))
        return self.cache.fill(block)

    def _done(self) -> tuple[int, int]:
        return self.n_blocks - len(self.missing()), self.n_blocks


class BlockFiller:
    """Fills blocks by number, for engines that hand work out, such as Ray Data: made once in every worker.

    A worker that is lost has left nothing half-written, and its blocks are made by whoever gets their numbers.
    """

    def __init__(self, model: str, text: str, folder: str, **settings: Any):
        self.work = Harvest.of(load_model(model), text, Path(folder), make(HarvestSettings, settings))

    def __call__(self, batch: Mapping[str, Iterable[int]]) -> dict[str, list]:
        """`batch["id"]` are numbers of blocks; returns them, and whether each was made by this call."""
        blocks = [int(block) for block in batch["id"]]
        return {"id": blocks, "filled": [self.work.cache.fill(block) for block in blocks]}
