"""Dictionaries too large for one file: blocks of latents, each a dictionary in SAELens' layout, and an index of them.

A folder has `cfg.json` and, in place of `sae_weights.safetensors`, `blocks.json`, which lists folders with as many
latents each, but for the last. Every block can be read by itself, by SAELens too; a TopK's latents compete across them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_core.errors import UserError
from sae_core.files import digest_in, read_json, read_tensors, write_json, write_tensors

CONFIG, WEIGHTS, BLOCKS = "cfg.json", "sae_weights.safetensors", "blocks.json"
LARGEST = 2**35
"""Bytes of tensors above which a dictionary is written in blocks."""


def write_dictionary(folder: Path, tensors: Mapping[str, Tensor], card: dict[str, Any], largest: int = LARGEST) -> None:
    """Write a dictionary's tensors and card, in files of at most `largest` bytes; `whole_dictionary` is the inverse."""
    size, n_latents = sum(tensor.nbytes for tensor in tensors.values()), len(tensors["W_dec"])
    write_json(folder / CONFIG, card)
    if size <= largest:
        write_tensors(folder / WEIGHTS, dict(tensors))
        return
    width, names = max(1, n_latents * largest // size), []
    for first in range(0, n_latents, width):
        part = {name: _latents(name, tensor, first, width) for name, tensor in tensors.items()}
        names.append(f"block-{first // width:05}")
        write_tensors(folder / names[-1] / WEIGHTS, part)
        write_json(folder / names[-1] / CONFIG, card | {"d_sae": len(part["W_dec"])})
    write_json(folder / BLOCKS, {"latents": width, "blocks": names})


def whole_dictionary(index: Path) -> dict[str, Tensor]:
    """The tensors of all blocks that an index lists; raises `UserError` where one is missing or damaged."""
    parts = [read_tensors(path) for path in _files(index)]
    if any(part.keys() != parts[0].keys() for part in parts):
        raise UserError(f"{index} lists blocks of several dictionaries")
    return {
        name: parts[0][name] if name == "b_dec" else torch.cat([part[name] for part in parts], _dimension(name))
        for name in parts[0]
    }


def digests_in(folder: Path) -> list[str | None]:
    """The digest of each file of tensors of a dictionary, as it was written."""
    index = folder / BLOCKS
    return [digest_in(path) for path in (_files(index) if index.is_file() else [folder / WEIGHTS])]


def _files(index: Path) -> Iterator[Path]:
    names = read_json(index).get("blocks")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{index} is damaged: it lists no blocks")
    return (index.parent / Path(name).name / WEIGHTS for name in names)


def _latents(name: str, tensor: Tensor, first: int, width: int) -> Tensor:
    if name == "b_dec":
        return tensor
    dimension = _dimension(name)
    return tensor.narrow(dimension, first, min(width, tensor.shape[dimension] - first))


def _dimension(name: str) -> int:
    """That of latents."""
    return 1 if name == "W_enc" else 0
