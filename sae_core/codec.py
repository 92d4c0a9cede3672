"""Results as JSON and back: one converter for every frozen dataclass of numbers and names.

Fields keep their names, and types are strict: a text is no number, and no list of its characters. A type with a `parse`
(`Site`, `FeatureId`) is written as its text, and a union of such types is read by the first whose `parse` takes the
text. Enums are written as their values, tuples as lists, mappings with the text of their keys, and a number that is not
finite as null, which reads as NaN.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from sae_core.errors import UserError

T = TypeVar("T")
_WORDS = {int: "a whole number", str: "a text", bool: "true or false"}


def to_plain(value: Any) -> Any:
    """`value` as what `json.dumps` takes; `from_plain` is the inverse."""
    return _converter().unstructure(value)


def from_plain(kind: type[T], value: Any, *, exact: bool = False) -> T:
    """The value of type `kind` that `to_plain` made `value` of; raises `UserError` where it cannot be one.

    Names that the type does not have are passed over, or `exact`ly refused.
    """
    try:
        return _converter(exact).structure(value, kind)
    except Exception as error:  # cattrs raises groups of whatever its hooks raise
        raise UserError(f"this is no {kind.__name__}: {_first(error)}") from error


def finite(value: float) -> float | None:
    """`value`, or None where it is infinite or no number: JSON has neither."""
    return value if math.isfinite(value) else None


def _first(error: BaseException) -> str:
    """The innermost cause of a cattrs error, in words, and the field that it is about."""
    place = ""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
        notes = [str(note) for note in getattr(error, "__notes__", ())]
        place = next((note.partition("attribute ")[2] for note in notes if "attribute " in note), "") or place
    strange: Any = getattr(error, "extra_fields", None)
    problem = f"missing {error}" if isinstance(error, KeyError) else str(error)
    problem = f"it has no {', '.join(sorted(strange))}" if strange else problem
    return f"{place}: {problem}" if place and not isinstance(error, KeyError) else problem


def _exactly(value: Any, kind: type) -> Any:
    if kind not in _WORDS:  # an enum of texts
        return kind(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"expected {_WORDS[kind]}, got {value!r:.60}")
    return value


def _number(value: Any, _: type) -> float:
    if value is not None and type(value) not in (int, float):
        raise UserError(f"expected a number, got {value!r:.60}")
    return math.nan if value is None else float(value)


def _parsed(text: str, kinds: Any) -> Any:
    for kind in get_args(kinds):
        try:
            return kind.parse(text)
        except UserError:
            continue
    raise UserError(f"{text!r} is no {' or '.join(kind.__name__ for kind in get_args(kinds))}")


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, tuple, Sequence)


def _listed(values: Any, kind: Any, structure: Callable[[Any, Any], Any]) -> Any:
    if not isinstance(values, (list, tuple)):
        raise UserError(f"expected a list, got {values!r:.60}")
    kinds = get_args(kind)
    if get_origin(kind) is not tuple or kinds[-1] is ...:
        kinds = kinds[:1] * len(values)
    if len(values) != len(kinds):
        raise UserError(f"expected {len(kinds)} values, got {values!r:.60}")
    read = [structure(value, each) for value, each in zip(values, kinds, strict=True)]
    return read if get_origin(kind) is list else tuple(read)


def _all_parse(kind: Any) -> bool:
    return isinstance(kind, UnionType) and all(hasattr(member, "parse") for member in get_args(kind))


@cache
def _converter(exact: bool = False):
    from cattrs import Converter  # here, so that training imports with torch alone
    from cattrs.strategies import configure_union_passthrough

    converter = Converter(forbid_extra_keys=exact)
    converter.register_unstructure_hook(float, lambda x: x if math.isfinite(x) else None)
    converter.register_structure_hook(float, _number)
    for kind in _WORDS:
        converter.register_structure_hook(kind, _exactly)
    converter.register_unstructure_hook_func(lambda kind: hasattr(kind, "parse"), str)
    converter.register_structure_hook_func(lambda kind: hasattr(kind, "parse"), lambda text, kind: kind.parse(text))
    converter.register_structure_hook_func(_all_parse, _parsed)
    converter.register_structure_hook_func(_is_list, partial(_listed, structure=converter.structure))
    configure_union_passthrough(int | str | bool, converter)
    return converter
