"""Sums over a text by which dictionaries are measured, while it is read.

Sums run in float64 and start from the mean of the first contexts' tokens (a shift that cancels in every result), so
that neither the split into chunks nor a large common offset of the activations shows. Outliers
(`sae_core/outliers.py`) are left out of all sums and kept as rows: they are few.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.evaluation.reconstruction import Outliers, OutlierToken, Part, Profile, Quality
from sae_core.outliers import inliers

FIRST = 16
"""Contexts by the mean of which activations are shifted."""
LISTED = 16
"""Outliers that are listed with their text."""
Text = Callable[[int, int], str]
"""The token at a position of a context, with what stands before it."""


class Cells:
    """Into which position bucket and which frequency bucket each token falls, as one number (`place`)."""

    def __init__(self, contexts: Int[Tensor, "contexts pos"], content: Bool[Tensor, "contexts pos"]):
        counts = torch.bincount(contexts[content], minlength=int(contexts.max()) + 1)
        order = counts.argsort(descending=True, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        from_position = _powers(1, 4, contexts.shape[1])
        from_rank = _powers(10, 10, int((counts > 0).sum()))
        self.positions, self.frequencies = _ranges(from_position), _ranges([1 + edge for edge in from_rank])
        position = torch.bucketize(torch.arange(contexts.shape[1]), torch.tensor(from_position[1:]), right=True)
        frequency = torch.bucketize(rank[contexts], torch.tensor(from_rank[1:-1]), right=True)
        self.place = position[None] * len(self.frequencies) + frequency

    def __len__(self) -> int:
        return len(self.positions) * len(self.frequencies)


def _powers(first: int, base: int, n: int) -> list[int]:
    """0, first, first * base, ... as far as the first that is not below `n`."""
    edges = [0, first]
    while edges[-1] < n:
        edges.append(edges[-1] * base)
    return edges


def _ranges(edges: list[int]) -> list[str]:
    return [f"{a}-{b - 1}" if b - a > 1 else f"{a}" for a, b in pairwise(edges)]


class SiteCount:
    """What is counted of the activations at one site, and of every dictionary there that leaves out the same tokens."""

    def __init__(self, cells: Cells, limit: float, codes_at_once: int):
        self.cells, self.limit, self.codes_at_once = cells, limit, codes_at_once
        self.tallies: dict[str, _Tally] = {}
        """By the name of the set."""
        self.outliers: list[tuple[Tensor, Tensor]] = []
        """Activations of outliers, and where they stand: context and position."""
        self.moments: _Moments | None = None

    def include(self, name: str, dictionary: Callable[[], Dictionary]) -> None:
        """Measure this one, too, which is asked for as it is needed: it may be opened each time."""
        self.tallies[name] = _Tally(self.cells, dictionary, self.codes_at_once)

    def add(
        self,
        x: Float[Tensor, "batch d_in"],
        place: Int[Tensor, "batch"],
        at_start: Bool[Tensor, "batch"],
        spot: Int[Tensor, "batch 2"],
    ) -> None:
        """Count content tokens: their cells, whether they begin a context, and their context and position."""
        if self.limit < math.inf:
            kept = inliers(x, self.limit)
            if not kept.all():
                self.outliers.append((x[~kept], spot[~kept]))
                x, place, at_start, spot = (part[kept] for part in (x, place, at_start, spot))
        if not len(x):
            return
        if self.moments is None:
            early = x[spot[:, 0] < FIRST]
            self.moments = _Moments(self.cells, early if len(early) else x)
        distance = self.moments.add(x, place)
        for tally in self.tallies.values():
            tally.add(x, place, at_start, distance)

    def profile(self, name: str, text: Text) -> Profile:
        """All that was counted of a set's dictionary; raises `UserError` where every token is an outlier."""
        if self.moments is None:
            raise UserError(f"every token has a norm above {self.limit:.3g} and is left out; give another text")
        tally = self.tallies[name]
        outliers = self._outliers(tally.dictionary(), self.moments, tally, text) if self.limit < math.inf else None
        return tally.profile(self.moments, outliers)

    def _outliers(self, dictionary: Dictionary, moments: "_Moments", tally: "_Tally", text: Text) -> Outliers:
        # all tokens: their mean is m = (n m_in + sum_out x) / (n + n_out), the variance
        # sum |x - m|^2 = sum_in |x - m|^2 + sum_out |x - m|^2, the first about another mean: + n |m_in - m|^2
        if not self.outliers:
            inside = tally.error.sum() / moments.spread().sum()
            return Outliers(self.limit, 0, 0.0, inside.item(), ())
        x, spot = (torch.cat(parts) for parts in zip(*self.outliers, strict=True))
        wide, n = x.double(), moments.n.sum()
        mean = (n * moments.mean + wide.sum(0)) / (n + len(x))
        beyond = (wide - mean).pow(2).sum()
        total = moments.spread().sum() + n * (moments.mean - mean).pow(2).sum() + beyond
        plain = getattr(dictionary, "codes", dictionary.encode)
        error = tally.error.sum() + (wide - dictionary.decode(plain(x)).double()).pow(2).sum()
        first = zip(spot[:LISTED].tolist(), wide.norm(dim=-1)[:LISTED].tolist(), strict=True)
        listed = tuple(OutlierToken(at[0], at[1], text(at[0], at[1]), norm) for at, norm in first)
        return Outliers(self.limit, len(x), (beyond / total).item(), (error / total).item(), listed)


class _Moments:
    """Sums of the activations at one site, per cell, about a shift."""

    def __init__(self, cells: Cells, x: Float[Tensor, "batch d_in"]):
        self.cells = cells
        self.shift = x.double().mean(0)
        self.n = x.new_zeros(len(cells), dtype=torch.long)
        self.total = x.new_zeros(len(cells), x.shape[-1], dtype=torch.float64)
        self.square = x.new_zeros(len(cells), dtype=torch.float64)

    def add(self, x: Float[Tensor, "batch d_in"], place: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """Count tokens; returns their squared distances from the shift."""
        moved = x.double() - self.shift
        distance = moved.pow(2).sum(-1)
        self.total.index_add_(0, place, moved)
        self.square.index_add_(0, place, distance)
        self.n += torch.bincount(place, minlength=len(self.n))
        return distance

    @property
    def mean(self) -> Float[Tensor, "d_in"]:
        return self.shift + self.total.sum(0) / self.n.sum()

    def spread(self) -> Float[Tensor, "cells"]:
        """sum |x - mean x|^2 per cell, about the mean of all cells."""
        off = self.mean - self.shift
        return self.square - 2 * self.total @ off + self.n * off.pow(2).sum()


class _Tally:
    """Sums of what one dictionary does, per cell, and counts per latent."""

    def __init__(self, cells: Cells, dictionary: Callable[[], Dictionary], codes_at_once: int):
        self.cells, self.dictionary, directions = cells, dictionary, dictionary().directions
        self.error = directions.new_zeros(len(cells), dtype=torch.float64)
        self.active = directions.new_zeros(len(cells), dtype=torch.long)
        self.fired, self.started = directions.new_zeros(2, len(directions), dtype=torch.long)
        self.rows_at_once = max(1, codes_at_once // len(directions))
        self.shares: list[Tensor] = []
        """Of each token |x - x_hat|^2 / |x - shift|^2."""
        self.cosine = self.ratio = 0.0
        self.n_nonzero = 0

    def add(
        self,
        x: Float[Tensor, "batch d_in"],
        place: Int[Tensor, "batch"],
        at_start: Bool[Tensor, "batch"],
        distance: Float[Tensor, "batch"],
    ) -> None:
        """Count the tokens `x`, `distance` from the shift; codes are dense for a few rows at a time."""
        for rows in zip(*(part.split(self.rows_at_once) for part in (x, place, at_start, distance)), strict=True):
            self._add(*rows)

    def _add(self, x: Tensor, place: Tensor, at_start: Tensor, distance: Tensor) -> None:
        dictionary = self.dictionary()
        f = dictionary.encode(x)
        wide, x_hat, active = x.double(), dictionary.decode(f).double(), f != 0
        error = (wide - x_hat).pow(2).sum(-1)
        self.error.index_add_(0, place, error)
        self.shares.append((error / distance).float().cpu())
        self.active.index_add_(0, place, active.sum(-1))
        self.fired += active.sum(0)
        self.started += active[at_start].sum(0)
        size, size_hat = wide.norm(dim=-1), x_hat.norm(dim=-1)
        nonzero = size > 0
        cosine = (wide * x_hat).sum(-1) / (size * size_hat).clamp_min(torch.finfo(torch.float64).tiny)
        self.cosine += cosine[nonzero].sum().item()
        self.ratio += (size_hat[nonzero] / size[nonzero]).sum().item()
        self.n_nonzero += int(nonzero.sum())

    def profile(self, moments: _Moments, outliers: Outliers | None) -> Profile:
        n, error, active = moments.n.cpu().double(), self.error.cpu(), self.active.cpu().double()
        spread, fired, started = moments.spread().cpu(), self.fired.cpu(), self.started.cpu()
        n_tokens, density = int(n.sum()), fired.double() / n.sum()
        table = torch.stack([n, error, spread, active]).unflatten(-1, (len(self.cells.positions), -1))
        return Profile(
            quality=Quality(
                fvu=(error.sum() / spread.sum()).item(),
                l0=(active.sum() / n_tokens).item(),
                dead=(fired == 0).double().mean().item(),
                n_tokens=n_tokens,
                fvu_median=torch.cat(self.shares).nanmedian().item(),
                outliers=outliers,
            ),
            cosine=self.cosine / self.n_nonzero if self.n_nonzero else math.nan,
            norm_ratio=self.ratio / self.n_nonzero if self.n_nonzero else math.nan,
            density=density,
            at_start=tuple(((started >= 4) & (2 * started >= fired)).nonzero().flatten().tolist()),
            by_position=_parts(self.cells.positions, table.sum(2)),
            by_frequency=_parts(self.cells.frequencies, table.sum(1)),
            mean=moments.mean,
        )


def _parts(names: list[str], table: Float[Tensor, "4 parts"]) -> tuple[Part, ...]:
    rows = zip(names, table.T, strict=True)
    return tuple(
        Part(name, int(n), (error / spread).item(), (active / n).item())
        for name, (n, error, spread, active) in rows
        if n > 0
    )
