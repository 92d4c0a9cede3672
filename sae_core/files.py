"""Files that appear whole or not at all: text, JSON, and tensors as safetensors."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_core.errors import UserError


def user_path(path: str | Path) -> Path:
    """A path that a user gave, `~` being a home folder; raises `UserError` for an empty one, and for no such user."""
    if not isinstance(path, (str, Path)) or not str(path).strip():
        raise UserError(f"{path!r} is no path; give the name of a file or a folder")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} names no user's folder: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a crash might leave the new name on an empty file
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
        os.chmod(partial, 0o644)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except SafetensorError as error:  # a full disk, for one: it is no OSError
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} could not be written: {error}") from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file; raises `UserError` where it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path} is missing; the folder is not complete")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises `UserError` where it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} is missing; the folder is not complete") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers or nesting beyond Python's limits
        raise UserError(f"{path} is damaged: it is not JSON ({str(error).partition(';')[0]})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return value
