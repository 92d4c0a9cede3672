"""The documents in one file, by its ending: plain text, JSON lines, JSON, CSV, parquet, arrow, and these compressed.

A row of a table or an object of JSON is a document: its text, or its token ids where it is tokenised already. Text is
UTF-8, or what its byte-order mark says. What cannot be read is refused by name, never trained on as if it were text.
"""

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_core.errors import UserError
from sae_core.files import parse_json


@dataclass(frozen=True)
class Conversation:
    """Turns with a `role` and their `content`, as chat templates take them."""

    turns: tuple[Mapping[str, str], ...]

    def __len__(self) -> int:
        """In characters."""
        return sum(len(turn["content"]) for turn in self.turns)


Document = str | list[int] | Conversation
"""A text, its token ids, or who said what."""
CONVERSATIONS = ("messages", "conversations")
_ROLES = {"human": "user", "gpt": "assistant"}
IDS, MASK = "input_ids", "attention_mask"
"""Where tokenised data sets have their tokens, and 0 for each that is padding."""
COMPRESSED = (".gz", ".zst")
ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Files whose documents are rows, with columns."""
KINDS = (".txt", *ROWS)
UNREADABLE = frozenset(
    ".7z .avro .bin .bz2 .db .doc .docx .epub .feather .h5 .lz4 .npy .npz .odt .orc .pdf .pickle .pkl .pt .pth .rar "
    ".rtf .safetensors .sqlite .tar .tgz .xls .xlsx .xz .zip".split()
)
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
_MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # after those that begin in the same way


def kind_of(path: Path) -> str:
    """The ending of a file, in small letters, without that of its compression."""
    last = path.suffix.lower()
    return (Path(path.stem).suffix if last in COMPRESSED else path.suffix).lower()


def is_text_file(name: str | Path) -> bool:
    """Whether a name has the ending of a file that is read here."""
    return kind_of(Path(name)) in KINDS


def file_documents(path: Path, column: str, piece: int) -> Iterator[Document]:
    """The documents of one file; plain text in pieces of about `piece` characters.

    Raises `UserError` where there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(
            f"no text at {path}; give 'storybook', a file ({', '.join(KINDS)}, or one of these with "
            f"{' or '.join(COMPRESSED)}), a folder, or a dataset name"
        )
    kind = kind_of(path)
    if kind in UNREADABLE:
        raise UserError(f"{path} cannot be read as text; {', '.join(KINDS)} can, also as {' or '.join(COMPRESSED)}")
    if kind in (".parquet", ".arrow"):
        yield from _table(path, kind[1:], column)
        return
    read = _READERS.get(kind)
    try:
        with _opened(path) as file:
            yield from read(path, file, column) if read else _plain(path, file, piece)
    except UnicodeError as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{path} is not UTF-8 text ({reason}); save it as UTF-8") from error
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path} could not be read: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[io.TextIOWrapper]:
    """A file as text, decompressed and decoded, without its byte-order mark."""
    ending, raw = path.suffix.lower(), path.open("rb")
    with raw:
        if ending == ".gz":
            raw = gzip.GzipFile(fileobj=raw)
        elif ending == ".zst":
            import pyarrow  # has the codec: no library of its own is needed

            raw = io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
        head = raw.peek(4)
        mark = next((mark for mark in _MARKS if head.startswith(mark)), None)
        yield io.TextIOWrapper(raw, encoding=_MARKS[mark] if mark else "utf-8-sig")


def document_of(row: Any, column: str, where: str) -> Document:
    """The text in `column` of a row, or its token ids; raises `UserError` that says `where` it has neither.

    A row without the column, but with `input_ids`, is read as tokens; what its `attention_mask` leaves out is padding.
    One with `messages` or `conversations` is read as a conversation.
    """
    if not isinstance(row, Mapping):
        raise UserError(f'{where}: expected an object with a "{column}"')
    name = next((name for name in (column, IDS, *CONVERSATIONS) if name in row), None)
    if name is None:
        raise UserError(f"{where}: no column {column!r}; its columns are {', '.join(map(str, row))}")
    value = row[name]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(token) is int for token in value):
        mask = row.get(MASK) or [1] * len(value)
        if len(mask) != len(value):
            raise UserError(f"{where}: {len(mask)} entries of {MASK} for {len(value)} token ids; give one for each")
        return [token for token, kept in zip(value, mask, strict=True) if kept]
    if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value):
        turns = [(turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))) for turn in value]
        if all(isinstance(part, str) for turn in turns for part in turn):
            return Conversation(tuple({"role": _ROLES.get(role, role), "content": text} for role, text in turns))
    raise UserError(f"{where}: {name!r} is not a string, nor a list of token ids, nor of turns with role and content")


# ---- kinds -----------------------------------------------------------------------------------------


def _plain(path: Path, file: io.TextIOWrapper, piece: int) -> Iterator[str]:
    """A text in pieces of half of `piece` to twice as many characters, which together are the whole.

    The cut is before a blank line, else before white space: there a word with its space begins, for most
    tokenizers a token.
    """
    kept = ""
    while more := file.read(piece):
        if "\0" in more:
            raise UserError(f"{path} holds binary data, no text")
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


def _json_lines(path: Path, lines: Iterable[str], column: str) -> Iterator[Document]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield document_of(parse_json(line, where), column, where)


def _json(path: Path, file: io.TextIOWrapper, column: str) -> Iterator[Document]:
    """A list of objects, also as the one list in an object; an object of columns; or JSON lines under another name."""
    text = file.read()
    try:
        value = parse_json(text, path)
    except UserError:
        yield from _json_lines(path, io.StringIO(text), column)
        return
    if isinstance(value, dict) and column not in value:
        tables = [each for each in value.values() if isinstance(each, list) and each and isinstance(each[0], dict)]
        value = tables[0] if len(tables) == 1 else [value]
    elif isinstance(value, dict):
        texts = value[column]
        value = [{column: each} for each in texts] if isinstance(texts, list) and texts else [value]
    for number, row in enumerate(value if isinstance(value, list) else [value]):
        yield row if isinstance(row, str) else document_of(row, column, f"{path}, row {number}")


def _csv(path: Path, file: io.TextIOWrapper, column: str) -> Iterator[Document]:
    import pandas

    how: dict[str, Any] = {"sep": "\t" if kind_of(path) == ".tsv" else ",", "chunksize": 1024}
    try:  # every cell as it is written: numbers and empty cells are text
        for chunk in pandas.read_csv(file, dtype=str, keep_default_na=False, **how):
            if not isinstance(chunk.index, pandas.RangeIndex):  # pandas would take the first column for row names
                raise UserError(f"{path}: rows have more cells than the head has names; quote cells that hold commas")
            rows = chunk.to_dict("records")
            yield from (document_of(row, column, f"{path}, row {i}") for i, row in zip(chunk.index, rows, strict=True))
    except UserError:
        raise
    except pandas.errors.EmptyDataError:
        return
    except pandas.errors.ParserError as error:
        raise UserError(f"{path} is no table: {' '.join(str(error).split())}") from error


_READERS: dict[str, Callable[[Path, io.TextIOWrapper, str], Iterator[Document]]]
_READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json, ".csv": _csv, ".tsv": _csv}


def _table(path: Path, kind: str, column: str) -> Iterator[Document]:
    if path.suffix.lower() in COMPRESSED:
        raise UserError(f"{path} is compressed twice; unpack it")
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True)
        yield from (document_of(row, column, f"{path}, row {number}") for number, row in enumerate(rows))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} could not be read: {' '.join(str(error).split())}") from error
