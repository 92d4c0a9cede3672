"""Text as contexts of equal length.

A document is cut into pieces of at most one context, every piece gets its own BOS (where the model has
one and `prepend_bos` is set), and contexts are filled with pieces in order; the piece that no longer
fits is cut where the context ends. Contexts therefore begin where a piece begins, never inside one.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from sae_core.errors import UserError
from sae_core.models import LanguageModel, hub_source

STORYBOOK_SEED = 2 * 10**6  # apart from the documents that the model was trained and measured on


@dataclass(frozen=True)
class Text:
    """Which text, and how it is cut; enough to read the same contexts again."""

    source: str
    """`storybook`, a `.txt` or `.jsonl` file (kept as an absolute path), or a Hugging Face dataset."""
    n_ctx: int
    """Tokens per context, BOS included."""
    prepend_bos: bool
    max_tokens: int = 2_000_000
    """At most this many tokens are read."""

    def __post_init__(self):
        path = Path(self.source).expanduser()
        if path.is_file():
            object.__setattr__(self, "source", str(path.resolve()))

    def contexts(self, model: LanguageModel) -> Int[Tensor, "contexts pos"]:
        """The contexts of this text in `model`'s tokens; raises `UserError` where there is not even one."""
        if self.n_ctx > model.n_ctx:
            raise UserError(f"a context of {self.n_ctx} tokens does not fit {model.name}, which reads {model.n_ctx}")
        bos = [model.bos_id] if self.prepend_bos and model.bos_id is not None else []
        size, rows, row, n_tokens = self.n_ctx - len(bos), [], [], 0
        if size < 1:
            raise UserError(f"a context of {self.n_ctx} tokens has no room for text; give a larger --context")
        limit = max(1, self.max_tokens // self.n_ctx)
        for document in documents(self.source):
            ids = model.to_ids(document)
            n_tokens += len(ids)
            for start in range(0, len(ids), size):
                row += bos + ids[start : start + size]
                if len(row) >= self.n_ctx:
                    rows.append(row[: self.n_ctx])
                    row = []
                if len(rows) == limit:
                    return torch.tensor(rows)
        if not rows:
            raise UserError(
                f"{self.source} holds {n_tokens} tokens, fewer than one context of {self.n_ctx}; "
                "give more text or a smaller --context"
            )
        return torch.tensor(rows)


def held_out(contexts: Int[Tensor, "contexts pos"]) -> tuple[Tensor, Tensor]:
    """(training contexts, held-out contexts): the first tenth, at most 256, is never trained on."""
    n = min(256, max(1, len(contexts) // 10)) if len(contexts) > 1 else 0
    return contexts[n:], contexts[:n] if n else contexts


def documents(source: str) -> Iterator[str]:
    """The documents of a source, one string each; raises `UserError` for one that is missing or empty."""
    if source == "storybook":
        yield from _storybook()
    elif looks_like_file(source):
        yield from _file(Path(source).expanduser())
    else:
        yield from _hub(source)


def looks_like_file(source: str) -> bool:
    """Whether a value names a file: it has a path separator that leads somewhere, or a text ending."""
    path = Path(source).expanduser()
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


def _file(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise UserError(f"no text at {path}; give 'storybook', a .txt or .jsonl file, or a dataset name")
    found = False
    with path.open(encoding="utf-8") as lines:
        try:
            for text in [lines.read()] if path.suffix != ".jsonl" else _json_lines(path, lines):
                if text.strip():
                    found = True
                    yield text
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not found:
        raise UserError(f"{path} holds no text")


def _json_lines(path: Path, lines) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f'{path}, line {number}: expected a JSON object with a "text"') from error
        if not isinstance(text, str):
            raise UserError(f'{path}, line {number}: "text" is not a string')
        yield text


def _hub(name: str) -> Iterator[str]:
    source = hub_source(name, kind="dataset")
    import datasets

    try:
        rows = datasets.load_dataset(str(source), split="train", streaming=True)
        for row in rows:
            yield row["text"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"dataset {name} could not be read: {str(error).splitlines()[0]}") from error
