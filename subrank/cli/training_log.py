"""Training as JSON lines."""

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sae_core.files import naming, parse_json, write_text
from subrank.loggers import rows_of

if TYPE_CHECKING:
    from sae_core.training.state import TrainState, TrainStep


class Log:
    """`log.jsonl`: a line per member and site every so often, and at the last step.

    Other loggers take the same numbers (`subrank/loggers.py`). Lines beyond the step from which a resumed run goes on
    are dropped, and so is one that was being written when the run broke off.
    """

    def __init__(self, path: Path, state: "TrainState"):
        self._path, self._state, self._started = path, state, time.monotonic()
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if state.step and path.is_file() else []
        write_text(path, "".join(line + "\n" for line in lines if _step_of(line) <= state.step))

    def add(self, step: "TrainStep") -> None:
        """Write down a step, if it is one of those."""
        rows = rows_of(step, self._state)
        if rows:
            seconds = {"seconds": round(time.monotonic() - self._started, 3)}
            with naming(self._path), self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row | seconds) + "\n" for row in rows)


def _step_of(line: str) -> float:
    """The step of a line, infinity if half of it is missing."""
    try:
        return float(parse_json(line, "the line")["step"])
    except (LookupError, TypeError, ValueError, OverflowError):  # `UserError` is a ValueError
        return math.inf
