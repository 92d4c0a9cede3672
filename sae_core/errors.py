"""The one exception for a user's mistake."""


class UserError(ValueError):
    """What was wrong, what was expected, and the way out, in one line; the command exits with status 2."""
