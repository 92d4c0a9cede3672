"""Values that come from a command line or a file, checked where they enter: each raises `UserError` in one line."""

import math
from typing import Any

from sae_core.errors import UserError


def whole(name: str, value: Any, least: int | None = 0) -> None:
    """Refuse all but whole numbers, of at least `least` unless that is None."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{name} must be a whole number; got {value!r}")
    if least is not None and value < least:
        raise UserError(f"{name} must be at least {least}; got {value}")


def weight(name: str, value: Any) -> None:
    """Refuse all but finite numbers that are not negative."""
    if not _number(value) or value < 0:
        raise UserError(f"{name} must be a finite number and not negative; got {value!r}")


def positive(name: str, value: Any) -> None:
    """Refuse all but finite numbers above zero."""
    if not _number(value) or value <= 0:
        raise UserError(f"{name} must be positive and finite; got {value!r}")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
