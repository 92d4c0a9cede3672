"""Files that are damaged by a seed: JSON in one or two places or as a text, tensors, and any file in its bytes."""

import json
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ODD = (None, True, False, 0, -1, 1.5, 1e300, 10**400, "", "x", "resid_post.9", "../x", "a\0b", [], {}, [1], ["x", None])
SHAPES = ((), (0,), (1,), (3, 3), (12, 0), (1, 2, 3))
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.complex64)
VALUES = (0.0, -1.0, 1e38, torch.nan, torch.inf, -torch.inf)


def damaged_json(text: str, draw: random.Random) -> str:
    """A JSON text with one or two values changed, exchanged, taken away or added; or no JSON any more."""
    if draw.random() < 0.1:
        place = draw.randrange(len(text) + 1)
        middle = draw.choice(("", "[" * 100_000, "9" * 5000, '"\\ud800"', "NaN", "\0", "}", text))
        return text[:place] + middle + text[draw.choice((place, len(text))) :]
    holder = {"": json.loads(text)}
    for _ in range(draw.choice((1, 1, 2))):
        holder.setdefault("", None)
        places = [*_places(holder)]
        (within, key), (other, its_key) = draw.choice(places), draw.choice(places)
        change = draw.random()
        if change < 0.15:
            del within[key]
        elif change < 0.25 and isinstance(within, dict):
            within["unheard"] = draw.choice(ODD)
        else:
            within[key] = json.loads(json.dumps(other[its_key])) if change < 0.45 else draw.choice(ODD)
    return json.dumps(holder.get(""))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every value within a value of JSON: what holds it, and under which key."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(part, (dict, list)):
            yield from _places(part)


def damaged_lines(text: str, draw: random.Random) -> str:
    """JSON lines of which one is damaged."""
    lines = text.splitlines()
    number = draw.randrange(len(lines))
    lines[number] = damaged_json(lines[number], draw)
    return "\n".join(lines) + draw.choice(("", "\n"))


def damaged_tensors(tensors: dict[str, Tensor], draw: random.Random) -> dict[str, Tensor]:
    """Tensors of which one is missing, further, of another shape or type, or holds other numbers."""
    name = draw.choice([*tensors])
    x, rest = tensors[name], {key: value for key, value in tensors.items() if key != name}
    changed = x.clone().contiguous().double()
    if changed.numel():
        changed.view(-1)[draw.randrange(changed.numel())] = draw.choice(VALUES)
    return draw.choice(
        (
            rest,
            tensors | {draw.choice(("unheard", "threshold", "b_gate", "scale")): x.clone()},
            rest | {name: torch.zeros(draw.choice(SHAPES))},
            rest | {name: x.to(draw.choice(DTYPES))},
            rest | {name: x.T.contiguous() if x.ndim == 2 else x[:-1] if x.ndim else x[None]},
            rest | {name: changed.to(x.dtype) if x.is_floating_point() else x},
        )
    )


def damaged_bytes(content: bytes, draw: random.Random) -> bytes:
    """A file with a bit flipped, a piece missing, doubled or exchanged, or cut off."""
    place, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    flipped = bytearray(content)
    if content:
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    noise = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 40)))
    before, after = content[:place], content[end:]
    pieces = [before, before + after, content[:end] + content[place:], before + noise + after]
    return draw.choice([bytes(flipped), *pieces, before + b"\xff\xfe" + content[place:], noise])
