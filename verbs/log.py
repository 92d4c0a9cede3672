"""Training as JSON lines."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_core.training import TrainState, TrainStep


class Log:
    """`log.jsonl`: a line per member and site every so often; other loggers read the same numbers in three lines.

    Lines beyond the step from which a resumed run goes on are dropped.
    """

    def __init__(self, path: Path, state: "TrainState"):
        from sae_core.files import write_text
        from sae_core.training import LOOK

        self._path, self._state, self._every, self._started = path, state, LOOK, time.monotonic()
        kept = path.read_text(encoding="utf-8").splitlines() if state.step and path.is_file() else []
        write_text(path, "".join(line + "\n" for line in kept if json.loads(line)["step"] <= state.step))

    def add(self, step: "TrainStep") -> None:
        """Write down a step, if it is one of those."""
        if step.step % self._every:
            return
        with self._path.open("a", encoding="utf-8") as file:
            for member, sites in zip(self._state.members, step.numbers(), strict=True):
                for site, numbers in sites.items():
                    lr = member.config.rate(step.step - 1, member.sites[site].sae.n_latents)
                    place = {"step": step.step, "tokens": step.step * member.config.batch}
                    place |= {"member": member.name, "site": str(site)}
                    rest = {"lr": lr, "seconds": round(time.monotonic() - self._started, 3)}
                    file.write(json.dumps(place | numbers | rest) + "\n")
