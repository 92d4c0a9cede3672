"""Settings as dataclass fields: their checks, their documentation, and functions that take them as keywords."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import Field, field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from sae_core import checks
from sae_core.errors import UserError, no_such
from sae_core.sites import BEFORE, Site, Stream, sites_in

T = TypeVar("T")
_TYPES = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: ((str, Path, Site), "a text"),
    Path: ((str, Path), "a path"),
}
"""What may be given for a value of each type, and how a message calls it."""


def setting(default: Any, **metadata: Any) -> Any:
    """A field with more to it.

    `least` and `most` are the smallest and the largest value, `above` a limit that is too small itself; `reads` raises
    `UserError` for a value that it cannot read; `empty` allows no values where several may be. `excludes` names
    settings that do not go with this one; `needs` maps others to values with one of which it is read (any but 0 and
    False, where none are named): without them it would be ignored. `quick` is what the default becomes under
    `--quick`, `large` for a large model (`model_size.fitted`); `group` (a heading), `flag` and `metavar` are for
    `--help`.
    """
    return field(default=default, metadata=metadata)


def site_or_stream(name: str) -> None:
    """Raise `UserError` unless `name` is a stream, a site, a range of them, or a hook point that a model may have."""
    if name not in {*Stream, BEFORE} and name.count(".") < 2:
        sites_in(name)


class Settings:
    """What the settings of all verbs share: each value is checked and has the type of its field, once it is made.

    Where several values may be, a single one may be given alone. Raises `UserError`.
    """

    chosen: frozenset[str] = frozenset()
    """The settings that somebody chose one by one, where `make` made these; else none."""
    by_default: frozenset[str] = frozenset()
    """The settings that nobody chose, neither one by one nor by `quick`, where `make` made these; else none."""

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, each.name, _checked(each, getattr(self, each.name), hints(type(self))[each.name]))


def make(kind: type[T], values: Mapping[str, Any]) -> T:
    """Settings from keywords; raises `UserError` that names the nearest right one for a keyword there is not."""
    names = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise no_such("setting", name, names)
    chosen = (_quick(kind) if values.get("quick") is True else {}) | dict(values)
    settings = kind(**chosen)
    _go_together(settings, {name for name in values if getattr(settings, name) not in (None, 0, ())})  # 0: not at all
    object.__setattr__(settings, "chosen", frozenset(values))
    object.__setattr__(settings, "by_default", frozenset(names) - chosen.keys())
    return settings


def _go_together(settings: Any, names: set[str]) -> None:
    """Raise `UserError` where one of the settings that somebody chose would be ignored."""
    by_name = {each.name: each for each in fields(settings)}
    for each in (by_name[name] for name in by_name if name in names):
        for other in each.metadata.get("excludes", ()):
            if other in names:
                flags = f"{flag_of(each)} and {flag_of(by_name[other])}"
                raise UserError(f"{flags} exclude each other; give one of them")
        needs = each.metadata.get("needs", {})
        if needs and not any(_meets(getattr(settings, name), values) for name, values in needs.items()):
            ways = (_way(flag_of(by_name[name]), values) for name, values in needs.items())
            now = ", ".join(_words(by_name[name], getattr(settings, name)) for name in needs)
            raise UserError(f"{flag_of(each)} is read only {' or '.join(ways)}, not {now}; leave it out")


def _meets(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a setting has, or is, one of the values; where none are named, whether it is anything."""
    return any(each in values for each in (value if isinstance(value, tuple) else (value,))) if values else bool(value)


def _way(flag: str, values: tuple[Any, ...]) -> str:
    named = " or ".join(str(value) for value in values if value is not None)
    return f"with {flag} {named}".rstrip()


def _words(other: Field, value: Any) -> str:
    """What a setting is, as it is typed; without it, where it is nothing."""
    if value is None or value is False:
        return f"without {flag_of(other)}"
    return f"with {flag_of(other)} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def _quick(kind: type) -> dict[str, Any]:
    """What the defaults become under `--quick`."""
    return {each.name: each.metadata["quick"] for each in fields(kind) if "quick" in each.metadata}


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
    """The docstring under each field of a dataclass, and of those that it builds on, by name."""
    texts: dict[str, str] = {}
    for part in (base for base in reversed(kind.__mro__) if is_dataclass(base)):
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0].body  # type: ignore[attr-defined]
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


def limits_of(each: Any) -> dict[str, int | float]:
    """The range of a field's values, as `checks.within` takes it."""
    return {name: each.metadata[name] for name in ("least", "above", "most") if name in each.metadata}


def single_type(hint: Any) -> Any:
    """The type of one value: of `tuple[int, ...] | None` int, of a choice between texts str."""
    if choices(hint):
        return str
    parts = [part for part in get_args(hint) if part not in (NoneType, Ellipsis)]
    return single_type(parts[0]) if parts else hint


def _checked(each: Field, value: Any, hint: Any) -> Any:
    """A value, or a tuple of several, as the field has it."""
    if value is None and NoneType in get_args(hint):
        return None
    if not is_several(hint):
        return _single(each, value, hint)
    alone = isinstance(value, str) or not hasattr(value, "__iter__")
    values: tuple[Any, ...] = (value,) if alone else tuple(value)  # type: ignore[arg-type]
    if not values and not each.metadata.get("empty"):
        raise UserError(f"{flag_of(each)} has no values; give at least one")
    return tuple(_single(each, single, hint) for single in values)


def _single(each: Field, value: Any, hint: Any) -> Any:
    flag, kind, allowed = flag_of(each), single_type(hint), choices(hint)
    types, words = _TYPES[kind]
    if not isinstance(value, types) or isinstance(value, bool) != (kind is bool):
        raise UserError(f"{flag} must be {words}; got {value!r}")
    if kind is float and not abs(value) < float("inf"):
        raise UserError(f"{flag} must be a finite number; got {value}")
    if kind in (str, Path):
        checks.text(flag, str(value))
    elif kind is not bool:
        checks.within(flag, int(value) if kind is int else value, **{"most": checks.LARGEST[kind]} | limits_of(each))
    value = kind(value)
    if allowed and value not in allowed:
        raise no_such(flag, value, allowed)
    if reads := each.metadata.get("reads"):
        reads(value)
    return value
