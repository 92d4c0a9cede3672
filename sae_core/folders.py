"""Folders whose contents appear whole: written elsewhere first, then put in the place of what was there before."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sae_core.errors import UserError
from sae_core.files import naming, read_json, write_json
from sae_core.partial import partial_folder, sweep

FILES = ".files.json"
"""Lists what was written into a folder, under which marks: that alone is removed when more of the same kind is."""


@contextmanager
def replacing(folder: Path, *marks: str) -> Iterator[Path]:
    """A new folder to write into; at the end of the block its files take the places of those written like this before.

    `marks` are the files that say of `folder` what it holds; the last one, that it is complete. They are removed first
    and come last, so that a process killed at any moment leaves what was there, what is new, or nothing that says to be
    complete. Where the block raises, `folder` stays as it was. Files that came there in other ways, or were written
    under other marks, stay in any case: dictionaries are not lost to a result that is saved beside them.
    """
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        new = partial_folder(folder)
    try:
        yield new
        names = sorted(str(path.relative_to(new)) for path in new.rglob("*") if path.is_file())
        write_json(new / FILES, {"marks": list(marks), "files": names})
        names = [FILES, *(name for name in names if name not in marks), *(name for name in marks if name in names)]
        with naming(folder):
            _put(new, names, [folder / name for name in marks], folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _put(new: Path, names: list[str], marks: list[Path], folder: Path) -> None:
    """Move files into `folder`, in this order; what may fail on a full disk comes before anything is removed."""
    paths, before = [folder / name for name in names], _written(folder, [path.name for path in marks])
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    for path in [*reversed(marks), *before, *paths]:  # all of it: no old file ever lies beside a new one
        path.unlink(missing_ok=True)
    for name, path in zip(names, paths, strict=True):
        os.replace(new / name, path)
    for path in before:
        with suppress(OSError):  # it holds other files as well
            os.removedirs(path.parent)


def marks_of(folder: Path) -> list[str]:
    """The marks under which what a folder holds was written; none where it was written in another way."""
    try:
        marks = read_json(folder / FILES).get("marks", [])
    except UserError:
        return []
    return marks if isinstance(marks, list) else []


def _written(folder: Path, marks: list[str]) -> list[Path]:
    """The files in `folder` that its list names, if under these marks; nothing outside of it, whatever it says."""
    if marks_of(folder) != marks:
        return []
    try:
        names = read_json(folder / FILES).get("files", [])
        paths = [folder / name for name in names]
    except (UserError, TypeError):  # no list, or a damaged one: nothing is removed
        return []
    return [path for path in paths if os.path.isfile(path) and path.resolve().is_relative_to(folder.resolve())]
