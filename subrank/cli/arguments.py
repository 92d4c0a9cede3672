"""Values of options made into what they name, or a `UserError` that says what was expected."""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_core.model.language_model import LanguageModel
    from subrank.saes import Saes


def shared(folder: Path, at_end: ExitStack | None = None) -> Path:
    """`folder`, made if need be, without what dead processes left half-written; locked where there is an `at_end`.

    Raises `UserError` before any work if nothing could be written there.
    """
    from sae_core.errors import UserError
    from sae_core.partial import sweep
    from subrank.cli.lock import locked

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if at_end is not None:
            at_end.enter_context(locked(folder))
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror}") from error
    sweep(folder)
    return folder


def writable(folder: Path, options: argparse.Namespace) -> Path:
    """`shared`, and locked until the verb ends; raises `UserError` where another process is writing, too."""
    return shared(folder, options.at_end)


def result_folder(folder: Path, options: argparse.Namespace) -> Path:
    """`writable`, for results; raises `UserError` for a folder of dictionaries as well."""
    from subrank.result import check_place

    return writable(check_place(folder), options)


def model_of(name: str, options: argparse.Namespace) -> "LanguageModel":
    """The model of that name, on the device and in the precision that the command line names."""
    from sae_core.model.device import usable
    from sae_core.model.language_model import load_model

    return load_model(name, device=usable(options.device), dtype=options.dtype, lm_batch=options.lm_batch)


def sets_of(folders: Sequence[Path]) -> "dict[str, Saes]":
    """The sets in folders of sets and of sweeps, by the shortest names that tell them apart."""
    from sae_core.storage import sets_in
    from subrank.saes import load

    paths = list(dict.fromkeys(path.resolve() for folder in folders for path in sets_in(folder)))
    return {name: load(path) for name, path in zip(names_of(paths), paths, strict=True)}


def names_of(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as tell all of them apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("two folders are one")
