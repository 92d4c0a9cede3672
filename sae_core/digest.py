"""By what things are known again: one SHA-256 of everything that a value is.

A digest is of numbers, not of where they lie: it is the same on every device, and in every floating-point format of at
most 32 bits that holds the same numbers. Every bit counts. A dataclass, a module or another object is its type and its
fields, private ones left out; a mapping is its pairs in the order of their keys. Cost: about 1.5 GB of tensors per
second and thread.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_AT_ONCE = 2**22
"""Numbers of a tensor that are copied at a time."""


def digest(*values: Any) -> str:
    """32 hexadecimal digits of plain values, tensors, dataclasses, modules, and mappings and sequences of these."""
    pieces = [*_pieces(values)]
    total = hashlib.sha256()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        tensors = pool.map(_bits, (piece for piece in pieces if isinstance(piece, Tensor)))
        for piece in pieces:
            total.update(next(tensors) if isinstance(piece, Tensor) else f"{piece}\n".encode(errors="surrogatepass"))
    return total.hexdigest()[:32]


def differences(stored: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    """What of a card is otherwise in a stored one, by name; of a model (`fingerprint`) which of its parts."""
    names = []
    for name, value in card.items():
        if (before := stored.get(name)) != value:
            names += [f"{name} {part}" for part in other_parts(before, value)] or [name]
    return names


def other_parts(before: Any, now: Any) -> list[str]:
    """The parts in which two fingerprints differ (`config:1a2b… weights:3c4d…`); none where either has no parts."""
    first, second = _parts(before), _parts(now)
    return [name for name in second if first[name] != second[name]] if first.keys() == second.keys() else []


def _parts(fingerprint: Any) -> dict[str, str]:
    pairs = [part.partition(":") for part in fingerprint.split()] if isinstance(fingerprint, str) else ()
    return {name: value for name, colon, value in pairs if colon}


def _pieces(value: Any) -> Iterator[str | Tensor]:
    """A value spelled out so that no two values read the same: its type, how much there is of it, and what it holds."""
    name = type(value).__name__
    if isinstance(value, Tensor):
        kind = "float" if _narrow(value) else value.dtype
        yield f"tensor {kind} {tuple(value.shape)}"
        yield value.detach()
    elif value is None or isinstance(value, (bool, int, float, str, bytes, Path)) or hasattr(value, "parse"):
        yield f"{name} {value!r}"
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}"
        for key in sorted(value, key=str):
            yield f"{key!r}"
            yield from _pieces(value[key])
    elif isinstance(value, (Sequence, Set)):
        parts = sorted(value, key=str) if isinstance(value, Set) else value
        yield f"sequence {len(parts)}"
        for part in parts:
            yield from _pieces(part)
    else:
        yield name
        yield from _pieces(_fields(value))


def _fields(value: Any) -> dict[str, Any]:
    """What an object is, by name."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    plain = {name: part for name, part in vars(value).items() if not name.startswith("_") and name != "training"}
    if isinstance(value, nn.Module):
        plain |= dict(value.named_parameters(recurse=False)) | dict(value.named_buffers(recurse=False))
        plain |= dict(value.named_children())
    return plain


def _narrow(x: Tensor) -> bool:
    """Whether numbers are floating-point ones that float32 holds exactly."""
    return x.is_floating_point() and x.element_size() <= 4


def _bits(x: Tensor) -> bytes:
    """A hash of all bits of a tensor; hashing releases the interpreter, so that several are hashed at once."""
    total, flat = hashlib.sha256(), x.reshape(-1)
    for start in range(0, len(flat), _AT_ONCE):
        part = flat[start : start + _AT_ONCE]
        total.update((part.float() if _narrow(part) else part).cpu().numpy().tobytes())
    return total.digest()
