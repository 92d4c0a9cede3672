"""Contexts of equal length, filled with documents.

A document is cut into pieces of at most one context, every piece gets its own BOS (where there is one), and contexts
are filled with pieces in order; the piece that no longer fits is cut where the context ends. Contexts therefore begin
where a piece begins, never inside one. With padding every piece has a context of its own: no token attends to another
document.
"""

from array import array
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


class Packer:
    """Contexts, filled with one document after the other."""

    def __init__(self, n_ctx: int, bos: Sequence[int], padding: int | None = None):
        self._n_ctx, self._bos, self._padding = n_ctx, list(bos), padding
        self._tokens, self._row = array("q"), []

    def __len__(self) -> int:
        """Contexts that are full."""
        return len(self._tokens) // self._n_ctx

    def add(self, ids: list[int]) -> None:
        """Cut a document into pieces and fill contexts with them."""
        size = self._n_ctx - len(self._bos)
        for start in range(0, len(ids), size):
            self._row += self._bos + ids[start : start + size]
            if self._padding is not None:
                self._row += [self._padding] * (self._n_ctx - len(self._row))
            if len(self._row) >= self._n_ctx:
                self._tokens.extend(self._row[: self._n_ctx])
                self._row = []

    def contexts(self, most: int) -> Int[Tensor, "contexts pos"]:
        """The first contexts, at most so many."""
        return torch.frombuffer(self._tokens, dtype=torch.long).view(-1, self._n_ctx)[:most]
