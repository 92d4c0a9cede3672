"""Text as contexts of equal length, read no further than it takes.

A document is cut into pieces of at most one context, every piece gets its own BOS (where the model has
one and `prepend_bos` is set), and contexts are filled with pieces in order; the piece that no longer
fits is cut where the context ends. Contexts therefore begin where a piece begins, never inside one.
"""

import hashlib
import json
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from jaxtyping import Int
from torch import Tensor

from sae_core.errors import UserError
from sae_core.files import user_path
from sae_core.model.hub import hub_source
from sae_core.model.language_model import LanguageModel

STORYBOOK_SEED = 2 * 10**6  # apart from the documents that the model was trained and measured on
PIECE = 2**20
"""Characters of a .txt file in memory at a time; a longer file is read as several documents."""


@dataclass(frozen=True)
class Text:
    """Which text, and how it is cut; enough to read the same contexts again."""

    source: str
    """`storybook`, a `.txt` or `.jsonl` file or a folder (kept as an absolute path), or a Hugging Face dataset.

    A dataset that comes in several configurations reads `name:configuration`.
    """
    n_ctx: int
    """Tokens per context, BOS included."""
    prepend_bos: bool
    max_tokens: int = 2_000_000
    """At most this many tokens are read."""
    column: str = "text"
    """Where in the rows of a dataset, or the objects of a `.jsonl` file, the text is."""

    def __post_init__(self):
        path = user_path(self.source)
        object.__setattr__(self, "source", str(self.source))
        if self.source != "storybook" and path.exists():
            object.__setattr__(self, "source", str(path.resolve()))

    def contexts(self, model: LanguageModel) -> Int[Tensor, "contexts pos"]:
        """The contexts of this text in `model`'s tokens; raises `UserError` where there is not even one."""
        if self.n_ctx > model.n_ctx:
            raise UserError(f"a context of {self.n_ctx} tokens does not fit {model.name}, which reads {model.n_ctx}")
        bos = [model.bos_id] if self.prepend_bos and model.bos_id is not None else []
        size, row, n_tokens = self.n_ctx - len(bos), [], 0
        if size < 1:
            raise UserError(f"a context of {self.n_ctx} tokens has no room for text; give a larger --context")
        tokens, limit = array("q"), max(1, self.max_tokens // self.n_ctx) * self.n_ctx
        for document in documents(self.source, self.column):
            ids = model.to_ids(document)
            n_tokens += len(ids)
            for start in range(0, len(ids), size):
                row += bos + ids[start : start + size]
                if len(row) >= self.n_ctx:
                    tokens.extend(row[: self.n_ctx])
                    row = []
                if len(tokens) == limit:
                    return _as_rows(tokens, self.n_ctx)
        if not tokens:
            raise UserError(
                f"{self.source} holds {n_tokens} tokens, fewer than one context of {self.n_ctx}; "
                "give more text or a smaller --context"
            )
        return _as_rows(tokens, self.n_ctx)


def _as_rows(tokens: array, n_ctx: int) -> Int[Tensor, "contexts pos"]:
    return torch.frombuffer(tokens, dtype=torch.long).view(-1, n_ctx)


def digest(contexts: Int[Tensor, "contexts pos"]) -> str:
    """A hash of the tokens, by which a run that goes on knows its text again."""
    return hashlib.sha256(contexts.contiguous().numpy().tobytes()).hexdigest()


def held_out(contexts: Int[Tensor, "contexts pos"]) -> tuple[Tensor, Tensor]:
    """(training contexts, held-out contexts): the first tenth, at most 256, is never trained on."""
    n = min(256, max(1, len(contexts) // 10)) if len(contexts) > 1 else 0
    return contexts[n:], contexts[:n] if n else contexts


def documents(source: str, column: str = "text", *, piece: int = PIECE) -> Iterator[str]:
    """The documents of a source, one string each; raises `UserError` for one that is missing or empty."""
    path, empty = user_path(source), True
    if source == "storybook":
        texts = _storybook()
    elif not looks_like_file(source):
        texts = _dataset(source, column)
    else:
        texts = _folder(path, column, piece) if path.is_dir() else _file(path, column, piece)
    for text in texts:
        if text.strip():
            empty = False
            yield text
    if empty:
        raise UserError(f"{source} holds no text")


def looks_like_file(source: str) -> bool:
    """Whether a value names a file: it has a path separator that leads somewhere, or a text ending."""
    path = user_path(source)
    return (
        path.suffix in (".txt", ".jsonl")
        or path.exists()
        or source.startswith((".", "/", "~"))
        or source.count("/") > 1
    )


def _storybook() -> Iterator[str]:
    from sae_core.storybook.grammar import Grammar

    grammar, rng = Grammar(), random.Random(STORYBOOK_SEED)
    while True:
        yield " ".join(token.text for token in grammar.document(rng)[:-1])


def _folder(folder: Path, column: str, piece: int) -> Iterator[str]:
    """A dataset in a folder, or the `.txt` and `.jsonl` files in it and below, sorted by their paths."""
    inside = [path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder))]
    if any(path.suffix in (".parquet", ".arrow") for path in inside):
        yield from _dataset(str(folder), column)
        return
    files = sorted(path for path in inside if path.suffix in (".txt", ".jsonl"))
    if not files:
        raise UserError(f"no text in {folder}: it holds no .txt, .jsonl, .parquet or .arrow file")
    for path in files:
        yield from _file(path, column, piece)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _file(path: Path, column: str, piece: int) -> Iterator[str]:
    if not path.is_file():
        raise UserError(f"no text at {path}; give 'storybook', a .txt or .jsonl file, a folder, or a dataset name")
    with path.open(encoding="utf-8") as file:
        try:
            yield from _json_lines(path, file, column) if path.suffix == ".jsonl" else _pieces(file, piece)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({error.reason})") from error


def _pieces(file: TextIO, piece: int) -> Iterator[str]:
    """A text in pieces of half of `piece` to twice as many characters, which together are the whole.

    The cut is before a blank line, else before white space: there a word with its space begins, for most
    tokenizers a token.
    """
    kept = ""
    while more := file.read(piece):
        kept += more
        if len(kept) < piece:
            continue
        space = kept.rfind("\n\n", piece // 2)
        if space < 0:
            space = max(kept.rfind(character, piece // 2) for character in " \n\t")
        cut = len(kept[:space].rstrip()) if space >= 0 else 0
        cut = cut or len(kept)
        yield kept[:cut]
        kept = kept[cut:]
    if kept:
        yield kept


def _json_lines(path: Path, lines: TextIO, column: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[column]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f'{path}, line {number}: expected a JSON object with a "{column}"') from error
        if not isinstance(text, str):
            raise UserError(f'{path}, line {number}: "{column}" is not a string')
        yield text


def _dataset(name: str, column: str) -> Iterator[str]:
    for number, row in enumerate(_rows(name)):
        if column not in row:
            raise UserError(f"dataset {name} has no column {column!r}; its columns are {', '.join(map(str, row))}")
        if not isinstance(row[column], str):
            raise UserError(f"dataset {name}, row {number}: {column!r} is not a string")
        yield row[column]


def _rows(name: str) -> Iterator[Any]:
    """The rows of the part `train` of a dataset, in a folder or on the hub, as they come in."""
    folder, config = user_path(name), None
    if folder.is_dir():
        source = str(folder)
    else:
        name, _, config = name.partition(":")
        source = str(hub_source(name, kind="dataset"))
    import datasets

    datasets.disable_progress_bars()
    try:
        if (folder / "state.json").is_file():  # `save_to_disk` wrote it
            yield from datasets.load_from_disk(source)
        else:
            yield from datasets.load_dataset(source, config or None, split="train", streaming=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"dataset {name} could not be read: {line}") from error
