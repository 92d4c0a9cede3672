"""Whether something ends in work or in one line that says what is wrong; anything else fails, and names the seed."""

from collections.abc import Callable
from typing import Any

from planted import unchecked

from sae_core.errors import UserError


class Began(BaseException):
    """Work would begin here."""


def begin(*args: Any, **how: Any) -> None:
    """In the place of a function with which work begins."""
    raise Began


def refused(what: str, call: Callable[[], Any]) -> bool:
    """Whether the call was refused; fails where it ended in anything but work or a `UserError` of one line."""
    try:
        with unchecked():
            call()
    except Began:
        return False
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error).strip(), what
        return True
    except BaseException as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}"[:2000]) from error
    return False
