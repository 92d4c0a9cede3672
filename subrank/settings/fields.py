"""Settings as dataclass fields: their checks, their documentation, and functions that take them as keywords."""

import ast
import inspect
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar, get_args, get_type_hints

from sae_core.errors import UserError, no_such

T = TypeVar("T")


def setting(default: Any, **metadata: Any) -> Any:
    """A field with more to it: `least` (smallest value), `group` (heading in `--help`), `flag`, `metavar`, `empty`."""
    return field(default=default, metadata=metadata)


class Settings:
    """What the settings of all verbs share: single values where several are meant, and checks when they are made."""

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            value, hint = getattr(self, each.name), hints(type(self))[each.name]
            if is_several(hint) and value is not None and (isinstance(value, str) or not hasattr(value, "__iter__")):
                value = (value,)
            if is_several(hint) and value is not None:
                value = tuple(value)
                object.__setattr__(self, each.name, value)
            for single in value if isinstance(value, tuple) else (value,):
                _check(flag_of(each), single, hint, each.metadata.get("least"))
        self.check()

    def check(self) -> None:
        """Raise `UserError` where settings do not go together."""


def make(kind: type[T], given: Mapping[str, Any]) -> T:
    """Settings from keywords; raises `UserError` that names the nearest right one for a keyword there is not."""
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in names:
            raise no_such("setting", name, names)
    return kind(**given)


def takes(kind: type) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorator: `**settings` of a function are the fields of `kind`, shown in its signature and docstring."""

    def described(function: Callable[..., T]) -> Callable[..., T]:
        parameters = list(inspect.signature(function).parameters.values())
        named = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
        for each in fields(kind):
            named.append(inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default))
        function.__signature__ = inspect.signature(function).replace(parameters=named)  # type: ignore[attr-defined]
        rows = [f"    {name}: {' '.join(text.split())}" for name, text in documented(kind).items()]
        function.__doc__ = inspect.cleandoc(function.__doc__ or "") + "\n\nSettings:\n" + "\n".join(rows)
        return function

    return described


@cache
def documented(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, by name."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    texts = {}
    for statement, following in pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            texts[ast.unparse(statement.target)] = ast.literal_eval(following.value)
    return texts


@cache
def hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(kind)


def is_several(hint: Any) -> bool:
    """Whether a type is a tuple, or a tuple or None."""
    return any(getattr(part, "__origin__", None) is tuple for part in (hint, *get_args(hint)))


def choices(hint: Any) -> tuple[str, ...]:
    """The texts that a type allows; none where it allows any."""
    parts = get_args(hint)
    if parts and all(isinstance(part, str) for part in parts):
        return parts
    return next((inner for part in parts if (inner := choices(part))), ())


def flag_of(each: Any) -> str:
    """A field as the command spells it."""
    return each.metadata.get("flag") or "--" + each.name.replace("_", "-")


def _check(flag: str, value: Any, hint: Any, least: float | None) -> None:
    allowed = choices(hint)
    if allowed and value is not None and value not in allowed:
        raise no_such(flag, value, allowed)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{flag} must be a finite number; got {value}")
    if least is not None and value is not None and not value >= least:
        raise UserError(f"{flag} must be at least {least}; got {value}")
