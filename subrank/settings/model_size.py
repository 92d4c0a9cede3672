"""Defaults that fit the size of the language model: what costs time becomes less as the model grows.

    value = usual (large / usual)^t,    t = log(weights / SMALL) / log(LARGE / SMALL), between 0 and 1

`usual` is a setting's default and `large` the one that its field names for large models (`fields.setting`); weights are
those of the blocks, about. Only sizes count, never the clock: the same command gives the same numbers everywhere. What
was given on the command line or to the function stays as it is, and so does what `quick` sets.
"""

import math
from dataclasses import fields, replace
from typing import TypeVar

from sae_core.progress import OnProgress, Progress, silent
from subrank.settings.fields import Settings, flag_of

S = TypeVar("S", bound=Settings)
SMALL, LARGE = 10_000_000, 100_000_000
"""Weights of the blocks up to which a model has the usual defaults, and from which on those of a large one."""


def fitted(settings: S, block_weights: int, on_progress: OnProgress = silent) -> S:
    """The settings with defaults that fit a model of so many weights in its blocks; a line says what became less."""
    share = min(1.0, max(0.0, math.log(block_weights / SMALL) / math.log(LARGE / SMALL)))
    fewer = {}
    for each in fields(settings):  # type: ignore[arg-type]
        usual, large = getattr(settings, each.name), each.metadata.get("large")
        if large is None or each.name not in settings.by_default:
            continue
        if (value := round(usual * (large / usual) ** share)) != usual:
            fewer[each.name] = value
            flag = flag_of(each)
            line = f"{flag} {value} in place of {usual}, because the model is large; give {flag} to change that"
            on_progress(Progress(line, 0, None))
    return replace(settings, **fewer)  # type: ignore[type-var]
