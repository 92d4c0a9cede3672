"""Training as JSON lines."""

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sae_core.files import naming, parse_json, write_text
from sae_core.training.loop import LOOK

if TYPE_CHECKING:
    from sae_core.training.state import TrainState, TrainStep


class Log:
    """`log.jsonl`: a line per member and site every so often, and at the last step.

    Other loggers read the same numbers in three lines. Lines beyond the step from which a resumed run goes on
    are dropped, and so is one that was being written when the run broke off.
    """

    def __init__(self, path: Path, state: "TrainState"):
        self._path, self._state, self._every, self._started = path, state, LOOK, time.monotonic()
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if state.step and path.is_file() else []
        write_text(path, "".join(line + "\n" for line in lines if _step_of(line) <= state.step))

    def add(self, step: "TrainStep") -> None:
        """Write down a step, if it is one of those."""
        if step.step % self._every and step.step != self._state.members[0].config.steps:
            return
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            for member, sites in zip(self._state.members, step.numbers(), strict=True):
                for site, numbers in sites.items():
                    lr = member.config.rate(step.step - 1, member.sites[site].sae.n_latents)
                    place = {"step": step.step, "tokens": step.step * member.config.batch}
                    place |= {"member": member.name, "site": str(site)}
                    rest = {"lr": lr, "seconds": round(time.monotonic() - self._started, 3)}
                    file.write(json.dumps(place | numbers | rest) + "\n")


def _step_of(line: str) -> float:
    """The step of a line, infinity if half of it is missing."""
    try:
        return float(parse_json(line, "the line")["step"])
    except (LookupError, TypeError, ValueError, OverflowError):  # `UserError` is a ValueError
        return math.inf
