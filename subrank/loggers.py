"""Where the numbers of training go besides `log.jsonl`: wandb, tensorboard, trackio, or whatever has `log` and `close`.

They are the numbers that training reports in any case (`TrainStep.numbers`), read at the same steps: what is trained
does not depend on who listens. A logger that fails after it has begun is left out from then on, and training goes on.
"""

import logging
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, get_args, runtime_checkable

from sae_core.errors import UserError, no_such
from sae_core.files import first_line, read_json, write_json
from sae_core.training.loop import LOOK
from sae_core.training.state import TrainState, TrainStep
from subrank.settings.train import LoggerName

log = logging.getLogger(__name__)
NAMES: tuple[str, ...] = get_args(LoggerName)
PROJECT, NAME = "subrank", "loggers.json"
_NUMBERS = ("loss", "fvu", "l0", "dead", "lr")


@runtime_checkable
class Logger(Protocol):
    """What takes down the numbers of training."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take down the numbers of a step, by names such as `resid_post.3/fvu`."""
        ...

    def close(self) -> None:
        """There are no more: training has ended, or was interrupted."""
        ...


LogTo = str | Logger | Sequence[str | Logger]
"""A logger, or several: by its name, or itself."""


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is told of a run as it begins."""

    name: str
    """By this the logger knows the run again where it goes on."""
    config: Mapping[str, Any]
    step: int
    """Steps that were taken before; 0 unless the run goes on."""
    folder: Path
    """For files of numbers."""

    @classmethod
    def of(cls, config: Mapping[str, Any], step: int, out: Path | None = None) -> "LoggedRun":
        """A run with a name of its own, kept in `out` (where there is one) for as long as the run goes on."""
        kept = read_json(out / NAME).get("name") if out and step and (out / NAME).is_file() else None
        bare = re.sub(r"[^\w.-]", "-", Path(str(config.get("model", PROJECT))).name)
        name = kept if isinstance(kept, str) and re.fullmatch(r"[\w.-]+", kept) else f"{bare}-{uuid.uuid4().hex[:8]}"
        if out:
            write_json(out / NAME, {"name": name})
        return cls(name, config, step, out / "tensorboard" if out else Path("runs") / name)


class _Tracker:
    """A run of wandb, or of trackio, which has the same functions."""

    def __init__(self, module: ModuleType, run: LoggedRun):
        how = {"project": PROJECT, "name": run.name, "config": dict(run.config), "resume": "allow"}
        if module.__name__ == "wandb":
            how |= {"project": os.environ.get("WANDB_PROJECT", PROJECT), "id": run.name}
        self._module = module
        module.init(**how)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._module.log(dict(numbers), step=step)

    def close(self) -> None:
        self._module.finish()


class _TensorBoard:
    """Event files of TensorBoard."""

    def __init__(self, module: ModuleType, run: LoggedRun):
        # a run that broke off wrote steps beyond its checkpoint, which come once more
        self._writer = module.SummaryWriter(str(run.folder), purge_step=run.step + 1 if run.step else None)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


_MODULES: dict[str, tuple[str, type[_Tracker] | type[_TensorBoard]]] = {
    "wandb": ("wandb", _Tracker),
    "tensorboard": ("torch.utils.tensorboard", _TensorBoard),
    "trackio": ("trackio", _Tracker),
}


def ready(chosen: LogTo) -> dict[str, Logger | ModuleType]:
    """The loggers that are chosen, by name, with the packages of those that stand under their name.

    Raises `UserError` for what is no logger, and where a package is not installed.
    """
    several = [chosen] if isinstance(chosen, (str, Logger)) else chosen
    if not isinstance(several, Sequence):
        raise UserError(f"log={chosen!r:.60} is no logger; give {', '.join(NAMES)}, or what has log(step, numbers)")
    loggers: dict[str, Logger | ModuleType] = {}
    for each in several:
        if not isinstance(each, str):
            if not isinstance(each, Logger):
                raise UserError(f"{each!r:.60} is no logger; it needs log(step, numbers) and close()")
            loggers[f"{type(each).__name__} {len(loggers)}"] = each
            continue
        if each not in NAMES:
            raise no_such("logger", each, NAMES)
        try:
            loggers[each] = import_module(_MODULES[each][0])
        except ImportError as error:
            why = first_line(error)
            raise UserError(f"--log {each} needs a package: pip install {each}; or leave it out ({why})") from error
    return loggers


class Loggers:
    """Several loggers of one run; one that fails is left out from then on, with a warning."""

    def __init__(self, loggers: Mapping[str, Logger]):
        self._loggers = dict(loggers)

    @classmethod
    def begin(cls, chosen: LogTo, config: Mapping[str, Any], step: int, out: Path | None = None) -> "Loggers":
        """The loggers that are chosen, told of the run; raises `UserError` where one of them cannot begin."""
        loggers: dict[str, Logger] = {}
        waiting = ready(chosen)
        run = LoggedRun.of(config, step, out) if waiting else None
        for name, each in waiting.items():
            if name in _MODULES and isinstance(each, ModuleType) and run is not None:
                try:
                    loggers[name] = _MODULES[name][1](each, run)
                except Exception as error:  # of any kind: the package's own, of the network, of the disk
                    cls(loggers).close()
                    raise UserError(f"--log {name} cannot begin: {first_line(error)}; or leave it out") from error
            elif isinstance(each, Logger):
                loggers[name] = each
        return cls(loggers)

    def add(self, step: TrainStep, state: TrainState) -> None:
        """Give the numbers of a step to all, if it is one at which they are looked at."""
        rows = rows_of(step, state) if self._loggers else []
        if rows:
            numbers = {"tokens": rows[0]["tokens"]}
            for row in rows:
                place = row["site"] if len(state.members) == 1 else f"{row['member']}/{row['site']}"
                numbers |= {f"{place}/{name}": row[name] for name in _NUMBERS}
            self._each(lambda logger: logger.log(step.step, numbers))

    def close(self) -> None:
        """Close all."""
        self._each(lambda logger: logger.close())

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in [*self._loggers.items()]:
            try:
                call(logger)
            except Exception as error:  # of any kind: what is trained is worth more
                del self._loggers[name]
                log.warning("%s takes down no more numbers (%s); training goes on", name, first_line(error))


def rows_of(step: TrainStep, state: TrainState) -> list[dict[str, Any]]:
    """A row for each member and site: step, tokens, names, loss, FVU, L0, dead latents, learning rate.

    None where nobody looks: at all steps but every `LOOK`-th, and the last.
    """
    if step.step % LOOK and step.step != state.members[0].config.steps:
        return []
    rows = []
    for member, sites in zip(state.members, step.numbers(), strict=True):
        for site, numbers in sites.items():
            place = {"step": step.step, "tokens": step.step * member.config.batch}
            place |= {"member": member.name, "site": str(site)}
            rows.append(place | numbers | {"lr": member.config.rate(step.step - 1, member.sites[site].n_latents)})
    return rows
