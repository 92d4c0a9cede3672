"""Sparse codes: which latents of a batch of tokens are active, and how strongly."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Codes:
    """The active latents of a batch of tokens, row by row.

    Token b has the latents `indices[offsets[b]:offsets[b + 1]]` with activations `values[...]`.
    """

    indices: Int[Tensor, "active"]
    values: Float[Tensor, "active"]
    offsets: Int[Tensor, "batch_and_1"]
    n_latents: int

    @classmethod
    def of_rows(cls, indices: Int[Tensor, "batch k"], values: Float[Tensor, "batch k"], n_latents: int) -> "Codes":
        """Codes with equally many entries in each row."""
        batch, k = indices.shape
        offsets = k * torch.arange(batch + 1, device=indices.device)
        return cls(indices.reshape(-1), values.reshape(-1), offsets, n_latents)

    @classmethod
    def where(cls, f: Float[Tensor, "batch n_latents"], mask: Tensor | None = None) -> "Codes":
        """The codes of dense activations: entries where `mask` holds, or where they are not zero."""
        rows, indices = (f != 0 if mask is None else mask).nonzero(as_tuple=True)
        return cls._of_tokens(rows, indices, f[rows, indices], f.shape)

    @classmethod
    def stacked(cls, parts: Sequence["Codes"]) -> "Codes":
        """The codes of a batch, given those of some rows after others."""
        if len(parts) == 1:
            return parts[0]
        counts = torch.cat([part.offsets.diff() for part in parts])
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        indices, values = (torch.cat([getattr(part, name) for part in parts]) for name in ("indices", "values"))
        return cls(indices, values, offsets, parts[0].n_latents)

    @classmethod
    def _of_tokens(cls, rows: Tensor, indices: Tensor, values: Tensor, shape: Sequence[int]) -> "Codes":
        codes = cls(indices, values, bounds_of(rows, shape[0]), shape[1])
        codes.__dict__["rows"] = rows
        return codes

    @cached_property
    def rows(self) -> Int[Tensor, "active"]:
        """The token of each entry."""
        counts = self.offsets.diff()
        token = torch.arange(len(counts), device=counts.device)
        return token.repeat_interleave(counts, output_size=len(self.indices))

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        indices, order = torch.sort(self.indices.int(), stable=True)  # half as wide as they come: sorted twice as fast
        return order, bounds_of(indices, self.n_latents)

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same entries latent by latent: (their order, their tokens, offsets `[n_latents + 1]`)."""
        order, offsets = self._sorted
        return order, self.rows[order], offsets

    def with_values(self, values: Float[Tensor, "active"]) -> "Codes":
        """The same latents with other activations."""
        return self._sharing("rows", "_sorted", "by_latent", values=values, offsets=self.offsets)

    def split_at(self, bounds: Sequence[int]) -> "Codes":
        """The same entries in one row more for a token than there are `bounds`: latents below the first of them, from
        there to the second, and so on. The latents of a token must rise, as those of `sparse.batch_top` do."""
        part = sum(((self.indices >= bound).long() for bound in bounds), torch.zeros_like(self.indices))
        n = len(bounds) + 1
        offsets = bounds_of(n * self.rows + part, n * (len(self.offsets) - 1))
        return self._sharing("_sorted", values=self.values, offsets=offsets)

    def where_kept(self, kept: Bool[Tensor, "active"]) -> "Codes":
        """The entries that are kept; the others are left out on a CPU and zeros elsewhere, so that no device waits for
        their number."""
        return (
            self.with_values(self.values * kept) if kept.device.type != "cpu" else self.at(kept.nonzero().squeeze(-1))
        )

    def at(self, places: Int[Tensor, "kept"]) -> "Codes":
        """The entries at some places, which must rise."""
        shape = len(self.offsets) - 1, self.n_latents
        return Codes._of_tokens(self.rows[places], self.indices[places], self.values[places], shape)

    def _sharing(self, *names: str, values: Tensor, offsets: Tensor) -> "Codes":
        other = Codes(self.indices, values, offsets, self.n_latents)
        other.__dict__.update({name: self.__dict__[name] for name in names if name in self.__dict__})
        return other

    def dense(self) -> Float[Tensor, "batch n_latents"]:
        """All activations, zeros included."""
        f = self.values.new_zeros(len(self.offsets) - 1, self.n_latents)
        return f.index_put((self.rows, self.indices), self.values, accumulate=True)

    def positive(self) -> Bool[Tensor, "batch n_latents"]:
        """Where an activation is larger than zero."""
        on = self.values.new_zeros(len(self.offsets) - 1, self.n_latents, dtype=torch.bool)
        return on.index_put((self.rows, self.indices), self.values > 0)


def bounds_of(ordered: Int[Tensor, "active"], n: int) -> Int[Tensor, "n_and_1"]:
    """Where each of the values 0 ... n begins in an ordered list."""
    return torch.searchsorted(ordered, torch.arange(n + 1, device=ordered.device))
