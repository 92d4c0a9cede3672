"""The one exception for a user's mistake."""

from collections.abc import Iterable
from difflib import get_close_matches

LISTED = 12
"""Names that a message lists in full; of more it gives the nearest only."""


class UserError(ValueError):
    """What was wrong, what was expected, and the way out, in one line; the command exits with status 2."""


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """` (did you mean a or b?)` where known names are near `name`, else an empty text."""
    near = get_close_matches(str(name), [str(each) for each in known], n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def no_such(what: str, name: object, known: Iterable[object]) -> UserError:
    """The error for a name that there is not, with the nearest right ones: raise it."""
    names = [str(each) for each in known]
    meant = did_you_mean(name, names)
    listed = f"; there are {', '.join(names)}" if names and (len(names) <= LISTED or not meant) else ""
    return UserError(f"no {what} {str(name)!r}{meant or listed}")
