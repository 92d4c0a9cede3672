"""Files that appear whole or not at all: text, JSON, and tensors as safetensors.

What cannot be written is an `OSError` that names the file.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_core import checks
from sae_core.digest import digest
from sae_core.errors import UserError
from sae_core.partial import final, partial_file
from sae_core.room import out_of_memory

DIGEST = "subrank_digest"
"""Under this name a file of tensors carries the digest of what was written."""
LONGEST_NAME = 255
"""Bytes of a file's name that file systems take."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def user_path(path: str | Path) -> Path:
    """A path that a user gave, `~` being a home folder; raises `UserError` for what is none, or for no such user."""
    if not isinstance(path, (str, Path)):
        raise UserError(f"{path!r:.80} is no path; give the name of a file or a folder")
    checks.text("the name of a file or folder", str(path))
    if any(len(part.encode()) > LONGEST_NAME for part in Path(path).parts):
        raise UserError(f"{str(path)[:40]}... is no path: its name is longer than {LONGEST_NAME} bytes")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} names no user's folder: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with _appearing(path, len(content)) as partial:
        partial.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors as safetensors, whole or not at all; returns their digest, which the file carries, too."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    written = digest(on_cpu)
    with _appearing(path, sum(tensor.nbytes for tensor in on_cpu.values())) as partial:
        save_file(on_cpu, partial, metadata={DIGEST: written})
    return written


@contextmanager
def _appearing(path: Path, n_bytes: int) -> Iterator[Path]:
    """A temporary file that gets the name `path` at the end of the block."""
    with naming(path, n_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_file(path.parent)
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())  # or a crash might leave the new name on an empty file
            os.chmod(partial, 0o644)  # temporary files are made for their owner alone
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: Path, n_bytes: int = 0) -> Iterator[None]:
    """Let what the system says against writing within the block name `path`, and how many bytes of a disk it needs."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number, reason = getattr(error, "errno", None) or errno.EIO, getattr(error, "strerror", None) or str(error)
        if n_bytes and (number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in reason):
            free = shutil.disk_usage(next(folder for folder in path.parents if folder.exists())).free
            reason += f"; it takes {n_bytes / 2**20:,.2f} MiB, and {free / 2**20:,.2f} are free there"
        raise OSError(number, f"could not be written: {reason}", str(final(path))) from error


# ---- reading ---------------------------------------------------------------------------------------


def read_tensors(path: Path, expected: str | None = None) -> dict[str, Tensor]:
    """The tensors that `write_tensors` wrote into a file; `expected` is the digest that it returned.

    Raises `UserError` for a file that is missing or damaged in any bit, and for one of other tensors than expected.
    """
    check_file(path)
    try:
        with safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get(DIGEST)
            names = file.keys()
            # copies: on how memory is aligned, which in a file is otherwise, the last digit of products hangs
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        systems = isinstance(error, OSError) or "os error" in str(error)
        raise UserError(f"{path} {'cannot be read' if systems else 'is damaged'}: {first_line(error)}") from error
    if written is not None and written != digest(tensors):
        raise UserError(f"{path} is damaged: its tensors are not those that were written")
    if expected not in (None, written):
        raise UserError(f"{path} holds other tensors than were written with the files beside it; bring those back")
    return tensors


def digest_in(path: Path) -> str | None:
    """The digest that `write_tensors` left in a file; None where another tool wrote it."""
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get(DIGEST)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises `UserError` where it is missing or damaged."""
    value = parse_json(read_text(path), path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return value


def parse_json(text: str, where: object) -> Any:
    """The value that a JSON text describes; raises `UserError`, which says `where` it is, for anything else."""
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: it holds half of a surrogate pair, which is no character; write it whole") from error
    except (ValueError, RecursionError) as error:  # not JSON, or numbers or nesting beyond Python's limits
        raise UserError(f"{where}: it is damaged, or not JSON ({str(error).partition(';')[0]})") from error
    return value


def read_text(path: Path) -> str:
    """The text in a file; raises `UserError` where it is missing, no regular file, or not UTF-8."""
    check_file(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def check_file(path: Path) -> None:
    """Raise `UserError` unless there is a regular file: a pipe or a device may have no end."""
    if not path.exists():
        raise UserError(f"{path} cannot be read: it is missing")
    if not path.is_file():
        raise UserError(f"{path} cannot be read: it is a folder, a pipe or a device; give a regular file")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Let whatever goes wrong within the block, where a file's content is made into values, name the file."""
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise UserError(f"{path} is damaged: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"missing {text}" if isinstance(error, KeyError) else text
