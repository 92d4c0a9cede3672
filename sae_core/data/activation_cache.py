"""Activations kept on disk: a block is harvested once and read ever after.

A cache is a folder with one file per block (`block-00000.safetensors`: rows in the order of the text, by
site) and a card (`cache.json`) that says of which model, text and sites they are. Rows depend on the batch size only
through the number of contexts in a block, so that runs with other batches may share them.

A block is a pure function of the stream and its number. Any number of processes may fill a folder, on one machine or
on several that share a disk: each locks the block that it is at, and a lock goes with its process, so that the block of
a process that was lost is made by another.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_core.data.activations import ActivationStream
from sae_core.data.reading import left_out
from sae_core.digest import differences, digest
from sae_core.errors import UserError
from sae_core.files import naming, read_json, read_tensors, write_json, write_tensors
from sae_core.locks import Taken, locked
from sae_core.model.precision import Kept
from sae_core.outliers import NO_LIMITS, Limits
from sae_core.partial import sweep
from sae_core.room import check_disk
from sae_core.sites import Site

CARD = "cache.json"
VERSION = 2
PRECISION = "precision"


@dataclass(frozen=True, eq=False)
class CachedStream:
    """The batches of another stream; a block that lies in the folder is read and not computed.

    To the bit where rows are kept in float32. In bfloat16 they are rounded to 8 bits once, and are the same whether
    they are computed or read. `kept` is for a folder that is new; None takes what the folder is of, or float32.

    Raises `UserError` for a folder that keeps the activations of anything else.
    """

    stream: ActivationStream
    folder: Path
    kept: Kept | None = None
    """In which precision; never None once this is made."""

    def __post_init__(self):
        sweep(self.folder)
        path = self.folder / CARD
        if not path.exists():
            with naming(path):
                self.folder.mkdir(parents=True, exist_ok=True)
                with locked(path.with_suffix(".lock"), wait=True):  # two that begin together must agree
                    self._begin(path)
        object.__setattr__(self, "kept", self.kept or kept_in(self.folder))
        stored = {PRECISION: "float32"} | read_json(path)
        if other := differences(stored, _card(self.stream, self.kept)):
            raise UserError(f"{self.folder} keeps activations of other {', '.join(other)}; give another folder")

    def _begin(self, path: Path) -> None:
        if path.exists():
            return
        if any(self.folder.glob("block-*.safetensors")):
            raise UserError(f"{self.folder} keeps activations, but no {CARD} says of what; give another folder")
        write_json(path, _card(self.stream, self.kept or "float32"))

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.stream.sites

    @property
    def batch(self) -> int:
        """Tokens per batch."""
        return self.stream.batch

    def block(self, block: int, limits: Limits = NO_LIMITS, steps: int | None = None) -> Iterator[dict[Site, Tensor]]:
        """The batches `[batch, d_in]` of one block; the same tokens at every site, outliers left out.

        A block is kept whole, also where training takes but `steps` more: a longer run reads on.
        """
        n = self.stream.n_contexts(block, steps)
        n_rows = int(self.stream.model.content(self.stream.tokens(block)[:n]).sum())
        if not self.path(block).exists():
            self._write(block)
            if self.kept == "float32":  # what was harvested is there to the bit, in the stream's memory

                def first() -> dict[Site, Tensor]:
                    return {site: x[:n_rows] for site, x in self.stream.rows(block).items()}

                yield from self.stream.batches(block, first, limits, n)
                return
        rows = {site: x[:n_rows] for site, x in self._read(block).items()}
        yield from self.stream.batches(block, lambda: rows, limits, n)

    def reader(self, block: int, n: int, share: tuple[int, int]) -> Callable[[], dict[Site, Tensor]]:
        """What returns the rows of a share of a block's first `n` contexts, as that of the stream.

        Those of a block that the folder lacks are computed, and not kept: no rank has the whole block.
        """
        if not self.path(block).exists():
            precision = getattr(torch, str(self.kept))
            rounded = {site: x.to(precision).float() for site, x in self.stream.rows(block, n, share).items()}
            return lambda: rounded
        content, (which, of) = self.stream.model.content(self.stream.tokens(block)[:n]), share
        here = (self.stream.dealt(n, of) == which)[:, None].expand_as(content)[content]
        rows = {site: x[: len(here)][here.to(x.device)] for site, x in self._read(block).items()}
        return lambda: rows

    def path(self, block: int) -> Path:
        """The file of a block."""
        return self.folder / f"block-{self.stream.place(block):05}.safetensors"

    def fill(self, block: int) -> bool:
        """Harvest a block, unless it lies there or another process is at it; whether this call has."""
        path = self.path(block)
        try:
            with locked(path.with_suffix(".lock")):
                if path.exists():  # only now nobody can be about to write it
                    return False
                self._write(block)
                return True
        except Taken:
            return False

    def _write(self, block: int) -> None:
        rows, precision = self.stream.rows(block), getattr(torch, str(self.kept))
        write_tensors(self.path(block), {str(site): x.to(precision) for site, x in rows.items()})

    def _read(self, block: int) -> dict[Site, Tensor]:
        path = self.path(block)
        try:
            tensors = read_tensors(path)
        except UserError as error:
            raise UserError(f"{error}; delete it, and it is computed again") from error
        model = self.stream.model
        n_tokens = int(model.content(self.stream.tokens(block)).sum())
        precision = getattr(torch, str(self.kept))
        expected = {str(site): (precision, n_tokens, model.d_in(site)) for site in self.sites}
        if {name: (x.dtype, *x.shape) for name, x in tensors.items()} != expected:
            raise UserError(f"{path} is damaged: it does not hold this block; delete it, and it is computed again")
        return {site: tensors[str(site)].to(model.device).float() for site in self.sites}


def kept_in(folder: Path) -> Kept:
    """In which precision a cache keeps activations; float32 where there is none yet."""
    path = folder / CARD
    return "bfloat16" if path.is_file() and read_json(path).get(PRECISION) == "bfloat16" else "float32"


def n_blocks(stream: ActivationStream, tokens: int) -> int:
    """How many blocks training on so many tokens reads where none is an outlier; those show only as they are read."""
    steps, n_ready, block = tokens // stream.batch, 0, 0
    while n_ready < steps:
        n_ready += max(1, stream.n_content(block) // stream.batch)
        block += 1
    return max(1, block)


def disk_bytes(stream: ActivationStream, tokens: int, kept: Kept = "float32") -> int:
    """About how much a cache takes on disk after training on so many tokens: later epochs are kept like the first."""
    n_numbers = _tokens_per_block(stream) * sum(stream.model.d_in(site) for site in stream.sites)
    return int(n_blocks(stream, tokens) * n_numbers * getattr(torch, kept).itemsize)


def check_cache(stream: ActivationStream, tokens: int, cache: Path, kept: Kept | None = None) -> None:
    """Raise `UserError` where the folder's disk has no room for the activations that it does not hold yet."""
    there = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    folder = next(place for place in (cache.absolute(), *cache.absolute().parents) if place.is_dir())
    way_out = "leave --cache out, train on fewer --tokens, or at fewer --sites"
    check_disk(disk_bytes(stream, tokens, kept or kept_in(cache)) - there, folder, "the cache of activations", way_out)


def _tokens_per_block(stream: ActivationStream) -> float:
    """Content tokens of a block, on average."""
    share = stream.model.content(stream.contexts).float().mean().item()
    return share * stream.block_contexts * stream.contexts.shape[1]


def _card(stream: ActivationStream, kept: Kept | None) -> dict[str, Any]:
    """Everything that a block's rows depend on; the names are read by people."""
    return {
        "version": VERSION,
        "model": stream.model.fingerprint(),
        "text": digest(stream.contexts, left_out(stream.model)),
        "sites": [str(site) for site in stream.sites],
        "seed": stream.seed,
        "contexts per block": stream.block_contexts,
        PRECISION: kept,
    }
