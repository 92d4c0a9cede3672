"""The documents of a source: the bundled grammar, a file, the files in a folder, or a Hugging Face dataset."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sae_core.data.file_kinds import KINDS, ROWS, Document, document_of, file_documents, is_text_file, kind_of
from sae_core.data.shuffling import ROOM, STREAMED_ROOM, interleaved, shuffled
from sae_core.errors import UserError
from sae_core.files import user_path
from sae_core.model.hub import hub_source

STORYBOOK_SEED = 2 * 10**6  # apart from the documents that the model was trained and measured on
COLUMN = "text"
"""Where rows have their text, if nothing else is said."""
PIECE = 2**20
"""Characters of a plain text in memory at a time; a longer one is read as several documents."""


def documents(source: str, column: str = COLUMN, *, piece: int = PIECE, seed: int | None = None) -> Iterator[Document]:
    """The documents of a source, each a text or its token ids; raises `UserError` for one that is missing or empty.

    With a `seed` those of all files are shuffled (of the storybook not: they are drawn at random). Without one they
    come in order, and of a folder `.txt`, `.jsonl` and datasets only, as before there were seeds.
    """
    path, rng = user_path(source), None if seed is None else random.Random(f"{seed}/documents")
    if source == "storybook":
        texts: Iterable[Document] = _storybook()
    elif looks_like_file(source) and not path.is_dir():
        texts = _from_files([path], column, piece, rng)
    elif not looks_like_file(source) or _is_dataset(path):
        texts = _dataset(source, column, rng)
    else:
        texts = _from_files(_inside(path, everything=rng is not None), column, piece, rng)
    empty = True
    for text in texts:
        if text.strip() if isinstance(text, str) else len(text):
            empty = False
            yield text
    if empty:
        raise UserError(f"{source} holds no text")


def looks_like_file(source: str) -> bool:
    """Whether a value names a file: it has a path separator that leads somewhere, or the ending of a text file."""
    path = user_path(source)
    return is_text_file(path) or path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1


def check_column(source: str, column: str) -> None:
    """Raise `UserError` where a column is named and nothing of the source has columns: it would not be read."""
    path = user_path(source)
    files = _visible(path) if path.is_dir() else [path] if path.is_file() else []
    if column != COLUMN and (source == "storybook" or (files and not any(kind_of(file) in ROWS for file in files))):
        raise UserError(f"--column is read with rows only, and {source} has none; leave it out")


def _storybook() -> Iterator[str]:
    from sae_core.storybook.grammar import Grammar

    grammar, rng = Grammar(), random.Random(STORYBOOK_SEED)
    while True:
        yield " ".join(token.text for token in grammar.document(rng)[:-1])


# ---- files -----------------------------------------------------------------------------------------


def _from_files(files: list[Path], column: str, piece: int, rng: random.Random | None) -> Iterator[Document]:
    def read(path: Path) -> Iterator[Document]:
        return file_documents(path, column, piece)

    if rng is None:
        return (document for path in files for document in read(path))
    return shuffled(interleaved(files, read, rng) if len(files) > 1 else read(files[0]), rng, ROOM)


def _is_dataset(folder: Path) -> bool:
    return any(path.suffix in (".parquet", ".arrow") for path in _visible(folder))


def _visible(folder: Path) -> list[Path]:
    """The files in a folder and below, sorted by their paths, without hidden ones."""
    inside = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _inside(folder: Path, *, everything: bool) -> list[Path]:
    """The files of text in a folder, `everything` or just .txt and .jsonl; raises `UserError` where it holds none."""
    visible = _visible(folder)
    files = [path for path in visible if (is_text_file(path) if everything else path.suffix in (".txt", ".jsonl"))]
    if not files:
        raise UserError(f"no text in {folder}: it holds no {', '.join(KINDS[:-1])} or {KINDS[-1]} file")
    return files


# ---- datasets --------------------------------------------------------------------------------------


def _dataset(name: str, column: str, rng: random.Random | None) -> Iterator[Document]:
    rows = _rows(name, None if rng is None else rng.randrange(2**31))
    where = "dataset {name}, row {number}" if rng is None else "dataset {name}"  # shuffled rows have lost their numbers
    texts = (document_of(row, column, where.format(name=name, number=number)) for number, row in enumerate(rows))
    return texts if rng is None else shuffled(texts, rng, ROOM if user_path(name).is_dir() else STREAMED_ROOM)


def _rows(name: str, seed: int | None) -> Iterator[Any]:
    """The rows of the part `train` of a dataset, in a folder or on the hub, as they come; a seed shuffles its files."""
    folder, config = user_path(name), None
    if folder.is_dir():
        source = str(folder)
    else:
        name, _, config = name.partition(":")
        source = str(hub_source(name, kind="dataset"))
    import datasets

    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():  # `save_to_disk` wrote it
            saved = datasets.load_from_disk(source)
            rows = saved["train"] if isinstance(saved, datasets.DatasetDict) else saved
            yield from rows if seed is None else rows.shuffle(seed)
        else:
            rows = datasets.load_dataset(source, config or None, split="train", streaming=True)
            yield from rows if seed is None else rows.shuffle(seed, buffer_size=1)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"dataset {name} could not be read: {line}") from error
