"""Values that come from a command line or a file, checked where they enter: each raises `UserError` in one line."""

import math
from typing import Any

from sae_core.errors import UserError

LARGEST = {int: 10**9, float: 1e6}
"""Of each type the number that is absurd for anything that is counted or weighed here, unless more is said."""
Number = int | float
TOKENS = 10**13
"""The most tokens that are read or trained on."""
SEEDS = 2**32 - 1
"""The largest seed that every library takes."""


def whole(name: str, value: Any, least: int | None = 0, most: int | None = None) -> None:
    """Refuse all but whole numbers from `least`, unless that is None, to `most`, by default to what is absurd."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name} must be a whole number; got {value!r}")
    within(name, value, least=least, most=most)


def weight(name: str, value: Any) -> None:
    """Refuse all but finite numbers that are not negative."""
    if not _number(value) or value < 0:
        raise UserError(f"{name} must be a finite number and not negative; got {value!r}")
    within(name, value)


def positive(name: str, value: Any, most: Number | None = None) -> None:
    """Refuse all but finite numbers above zero, to `most`, by default to what is absurd."""
    if not _number(value) or value <= 0:
        raise UserError(f"{name} must be positive and finite; got {value!r}")
    within(name, value, most=most)


def finite(name: str, value: Any) -> None:
    """Refuse all but numbers that are finite, and not absurd."""
    if not _number(value):
        raise UserError(f"{name} must be a finite number; got {value!r:.60}")
    within(name, value, most=LARGEST[float])


def within(
    name: str, value: Number, *, least: Number | None = None, above: Number | None = None, most: Number | None = None
) -> None:
    """Refuse numbers below `least`, not `above`, or beyond `most` (by default what is absurd)."""
    most = LARGEST[int if isinstance(value, int) else float] if most is None else most
    if value > most:
        raise UserError(f"{name} must be at most {most:.10g}; got {_shown(value)}")
    if (least is not None and value < least) or (above is not None and value <= above) or value < -most:
        raise UserError(f"{name} must be {limits(least, above) or f'at least {-most:g}'}; got {_shown(value)}")


def limits(least: Number | None = None, above: Number | None = None, most: Number | None = None) -> str:
    """A range in words: `at least 16`, `above 0`, `from 0 to 1`; empty where there is none."""
    if least is not None:
        return f"at least {least:g}" if most is None else f"from {least:g} to {most:.10g}"
    low = [] if above is None else [f"above {above:g}"]
    return " and ".join(low + ([] if most is None else [f"at most {most:.10g}"]))


def text(name: str, value: str) -> None:
    """Refuse texts that are empty or cannot be written, as those with a byte that is no UTF-8."""
    if not value.strip():
        raise UserError(f"{name} is empty; give at least one word")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{name} must be text in UTF-8; got {value!r:.60}")


def _shown(value: Number) -> str:
    """A number as a message shows it, however long it is."""
    return str(value) if abs(value) < 10**24 else f"{value:.3g}" if abs(value) < 1e300 else "a number beyond all bounds"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
