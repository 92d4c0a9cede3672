"""Activations kept on disk: a block is harvested once and read ever after.

A cache is a folder with one file per block (`block-00000.safetensors`: rows in the order of the text, by
site) and a card (`cache.json`) that says of which model, text and sites they are. Rows depend on the batch size only
through the number of contexts in a block, so that runs with other batches may share them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_core.data.activations import ActivationStream
from sae_core.data.reading import left_out
from sae_core.digest import differences, digest
from sae_core.errors import UserError
from sae_core.files import read_json, read_tensors, write_json, write_tensors
from sae_core.outliers import NO_LIMITS, Limits
from sae_core.partial import sweep
from sae_core.sites import Site

CARD = "cache.json"
VERSION = 2


@dataclass(frozen=True, eq=False)
class CachedStream:
    """The batches of another stream, to the bit; a block that lies in the folder is read and not computed.

    Raises `UserError` for a folder that keeps the activations of anything else.
    """

    stream: ActivationStream
    folder: Path

    def __post_init__(self):
        sweep(self.folder)
        card, path = _card(self.stream), self.folder / CARD
        if path.exists():
            stored = read_json(path)
            if other := differences(stored, card):
                raise UserError(f"{self.folder} keeps activations of other {', '.join(other)}; give another folder")
        elif any(self.folder.glob("block-*.safetensors")):
            raise UserError(f"{self.folder} keeps activations, but no {CARD} says of what; give another folder")
        else:
            write_json(path, card)

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
        path = self.folder / f"block-{self.stream.place(block):05}.safetensors"
        if path.exists():
            rows = {site: x[:n_rows] for site, x in self._read(path, block).items()}
            yield from self.stream.batches(block, lambda: rows, limits, n)
            return
        rows = self.stream.rows(block)
        write_tensors(path, {str(site): x for site, x in rows.items()})

        def first() -> dict[Site, Tensor]:
            return {site: x[:n_rows] for site, x in self.stream.rows(block).items()}

        yield from self.stream.batches(block, first, limits, n)

    def _read(self, path: Path, block: int) -> dict[Site, Tensor]:
        try:
            tensors = read_tensors(path)
        except UserError as error:
            raise UserError(f"{error}; delete it, and it is computed again") from error
        model = self.stream.model
        n_tokens = int(model.content(self.stream.tokens(block)).sum())
        expected = {str(site): (n_tokens, model.d_in(site)) for site in self.sites}
        if {name: tuple(x.shape) for name, x in tensors.items()} != expected:
            raise UserError(f"{path} is damaged: it does not hold this block; delete it, and it is computed again")
        return {site: tensors[str(site)].to(model.device) for site in self.sites}


def disk_bytes(stream: ActivationStream, tokens: int) -> int:
    """About how much a cache takes on disk after training on so many tokens: later epochs are kept like the first."""
    share = stream.model.content(stream.contexts).float().mean().item()
    per_block = share * stream.block_contexts * stream.contexts.shape[1]
    n_blocks = math.ceil(tokens / max(stream.batch, per_block // stream.batch * stream.batch))
    return int(n_blocks * per_block * 4 * sum(stream.model.d_in(site) for site in stream.sites))


def _card(stream: ActivationStream) -> dict[str, Any]:
    """Everything that a block's rows depend on; the names are read by people."""
    return {
        "version": VERSION,
        "model": stream.model.fingerprint(),
        "text": digest(stream.contexts, left_out(stream.model)),
        "sites": [str(site) for site in stream.sites],
        "seed": stream.seed,
        "contexts per block": stream.block_contexts,
    }
