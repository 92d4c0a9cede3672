"""Tensors and the JSON beside them, as another tool left them on disk. No pickled object is ever loaded."""

import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from sae_core.errors import UserError
from sae_core.files import check_file, first_line, read_json, read_tensors
from sae_core.formats.blocks import BLOCKS, whole_dictionary
from sae_core.room import out_of_memory

LARGEST = 1e15
"""Numbers of a dictionary are smaller: sums of squares of such ones are still finite."""
PICKLED = "it is damaged, or holds more than tensors and plain values; such objects can run code and are not loaded"
_NAMES = ("sae_weights.safetensors", "sae.safetensors", "params.safetensors", "params.npz", "ae.pt")


def locate(path: Path) -> Path:
    """The file of tensors that `path` is, or that the folder `path` holds."""
    if path.suffix == ".json" and path.is_file():
        path = path.parent
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"no file or folder {path}; give a file of another tool's dictionary, or its folder")
    files = [path / name for name in (*_NAMES, BLOCKS) if (path / name).is_file()]
    if len(files) == 1:
        return files[0]
    if files:
        raise UserError(f"{path} holds {' and '.join(file.name for file in files)}; give the file itself")
    within = sorted(file.parent for name in _NAMES for file in path.glob(f"*/{name}"))
    hint = f"; give one of the folders in it, such as {within[0]}" if within else f" (none of {', '.join(_NAMES)})"
    raise UserError(f"{path} itself holds no dictionary{hint}")


def _values(path: Path) -> dict[str, Any]:
    """What a file of tensors holds, by name."""
    check_file(path)
    try:
        if path.name == BLOCKS:
            return {**whole_dictionary(path)}
        if path.suffix == ".safetensors":
            return {**read_tensors(path)}
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        values = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except UnpicklingError as error:
        raise UserError(PICKLED) from error
    except (BadZipFile, zlib.error, OSError, ValueError, TypeError, RuntimeError, EOFError, KeyError) as error:
        if out_of_memory(error):
            raise
        raise UserError(f"it is damaged, or no file of tensors: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"it holds a {type(values).__name__}; expected tensors by name")
    return values


def _card(path: Path) -> dict[str, Any]:
    """The JSON beside the tensors, or above a folder `checkpoints`; empty where there is none."""
    cards = [path.parent / "cfg.json", path.parent / "config.json"]
    if path.parent.name == "checkpoints":
        cards.append(path.parent.parent / "config.json")
    return next((read_json(card) for card in cards if card.is_file()), {})


@dataclass(frozen=True, eq=False)
class Source:
    """A file of tensors and the JSON beside it. Errors leave it to the caller to name the file."""

    path: Path
    values: dict[str, Any]
    card: dict[str, Any]
    read: set[str] = field(default_factory=set)
    """Names of values that have been understood; one that has not might change what the dictionary is."""

    @property
    def folder(self) -> Path:
        return self.path.absolute().parent

    def has(self, *names: str) -> bool:
        return all(isinstance(self.values.get(name), Tensor) for name in names)

    def tensor(self, name: str, *shape: int | None) -> Tensor:
        """A tensor as float32, of the given shape (None: any size)."""
        value = self.values.get(name)
        self.read.add(name)
        if not isinstance(value, Tensor):
            raise UserError(f"its tensor {name} is missing; it holds {listed(self.values)}")
        if value.ndim != len(shape) or any(a not in (None, b) for a, b in zip(shape, value.shape, strict=True)):
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise UserError(f"its tensor {name} has the shape {list(value.shape)}; expected [{expected}]")
        return check_numbers(name, value)

    def matrices(
        self, encoder: str, decoder: str, b_enc: str | None, b_dec: str
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """W_enc, b_enc, W_dec, b_dec under their foreign names; a `.weight` is PyTorch's, [out, in]."""
        W_dec = self.tensor(decoder, None, None)
        W_dec = W_dec.T if decoder.endswith(".weight") else W_dec
        n_latents, d_in = W_dec.shape
        for key, size in (("d_in", d_in), ("d_sae", n_latents), ("num_latents", n_latents)):
            if self.card.get(key) not in (None, 0, size):
                raise UserError(f"its tensor {decoder} means {key} = {size}; the JSON says {self.card[key]}")
        if encoder.endswith(".weight"):
            W_enc = self.tensor(encoder, n_latents, d_in).T
        else:
            W_enc = self.tensor(encoder, d_in, n_latents)
        return W_enc, self.tensor(b_enc, n_latents) if b_enc else None, W_dec, self.tensor(b_dec, d_in)


def check_numbers(name: str, value: Tensor) -> Tensor:
    """A tensor as float32; raises `UserError` for one that holds no real numbers, or some too large to compute with."""
    if not value.is_floating_point():
        raise UserError(f"its tensor {name} is of the type {value.dtype}; expected floating-point numbers")
    numbers = value.detach().float()
    largest = max(abs(end.item()) for end in numbers.aminmax()) if numbers.numel() else 0.0
    if not math.isfinite(largest):
        raise UserError(f"its tensor {name} holds NaN or infinity")
    if largest > LARGEST:
        raise UserError(f"its tensor {name} holds {largest:.3g}; numbers up to {LARGEST:g} can be computed with")
    return numbers


def listed(values: dict[str, Any]) -> str:
    return ", ".join(sorted(map(str, values))[:12]) or "nothing"


def read(path: Path) -> Source:
    """The file of tensors at `path`, and the JSON beside it."""
    return Source(path, _values(path), _card(path))
