"""How well a dictionary explains activations. Measuring changes nothing.

One pass over the text serves every dictionary of every site: the language model runs once, each dictionary
once, and of the codes only counts per latent stay. Sums run in float64 and start from the mean of the first
tokens (a shift that cancels in every result), so that neither the split into chunks nor a large common
offset of the activations shows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site

CODES_AT_ONCE = 2**24
"""Entries of a dense code that are in memory at a time."""
_BINS_PER_DECADE = 4


def fvu(x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> float:
    """Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - mean x|^2, over all tokens and dimensions."""
    wide = x.double()
    return ((wide - x_hat.double()).pow(2).sum() / (wide - wide.mean(0)).pow(2).sum()).item()


def l0(f: Float[Tensor, "batch n_latents"]) -> float:
    """Mean number of active latents per token."""
    return (f != 0).sum(-1).double().mean().item()


def finite(value: float) -> float | None:
    """`value`, or None where it is infinite or no number: JSON has neither."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Quality:
    """A dictionary on a text."""

    fvu: float
    l0: float
    dead: float
    """Share of latents that are not active on any of `n_tokens`."""
    n_tokens: int


@dataclass(frozen=True)
class Part:
    """A dictionary on some of a text's tokens.

    FVU within a part is its squared error over its squared distance from the mean of *all* tokens, so that
    the FVU of the text is the mean of its parts', weighted by that distance.
    """

    name: str
    n_tokens: int
    fvu: float
    l0: float


@dataclass(frozen=True, eq=False)
class Profile:
    """Everything that one pass over a text says about a dictionary."""

    quality: Quality
    cosine: float
    """Mean over tokens of cos(x, x_hat); tokens with x = 0 are left out of it."""
    norm_ratio: float
    """Mean over tokens of |x_hat| / |x|; below 1, the dictionary shrinks."""
    density: Float[Tensor, "n_latents"]
    """Share of tokens on which each latent is active."""
    at_start: tuple[int, ...]
    """Latents with at least 4 active tokens, and half of all theirs, at the first content token of a context."""
    by_position: tuple[Part, ...]
    """Tokens by their place in the context, counted from 0 (BOS, if there is one)."""
    by_frequency: tuple[Part, ...]
    """Tokens by the rank of their token among all measured: `1-10` are the ten commonest."""
    mean: Float[Tensor, "d_in"]
    """Mean activation over the tokens, in float64."""

    @property
    def n_alive(self) -> int:
        """Latents that are active somewhere."""
        return int((self.density > 0).sum())

    def histogram(self) -> tuple[list[float], list[int]]:
        """(edges, counts) of log10 density over the latents that are not dead, in quarters of a decade up to 0.

        The edges depend on the number of tokens only, so that dictionaries measured together share them.
        """
        n_bins = math.ceil(_BINS_PER_DECADE * math.log10(max(self.quality.n_tokens, 2)))
        edges = torch.arange(-n_bins, 1, dtype=torch.float64) / _BINS_PER_DECADE
        alive = self.density[self.density > 0].log10()
        bins = torch.bucketize(alive, edges, right=True).clamp(1, n_bins) - 1
        return edges.tolist(), torch.bincount(bins, minlength=n_bins).tolist()


def quality(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    *,
    at_once: int = 32,
) -> dict[Site, Quality]:
    """FVU, L0 and dead share of each dictionary on the content tokens of `contexts`, in one pass."""
    measured = profiles(model, {"": dictionaries}, contexts, at_once=at_once)[""]
    return {site: profile.quality for site, profile in measured.items()}


@torch.no_grad()
def profiles(
    model: LanguageModel,
    sets: Mapping[str, Mapping[Site, Dictionary]],
    contexts: Int[Tensor, "contexts pos"],
    *,
    at_once: int = 32,
    codes_at_once: int = CODES_AT_ONCE,
) -> dict[str, dict[Site, Profile]]:
    """The profile of every dictionary of every set on the content tokens of `contexts`, all in one pass.

    `at_once` contexts go through the model together, and `codes_at_once` entries of a code are in memory at a time.
    Raises `UserError` where the text holds special tokens only.
    """
    content = model.content(contexts)
    if not content.any():
        raise UserError("the text holds no tokens but special ones; give another text")
    cells = _Cells(contexts, content)
    moments: dict[Site, _Moments] = {}
    tallies = {
        name: {site: _Tally(cells, dictionary, codes_at_once) for site, dictionary in dictionaries.items()}
        for name, dictionaries in sets.items()
    }
    sites = {site for dictionaries in sets.values() for site in dictionaries}
    for rows in torch.arange(len(contexts)).split(at_once):
        kept, place = content[rows], cells.place[rows][content[rows]]
        first = (kept & (kept.cumsum(-1) == 1))[kept]
        for site, h in model.record(contexts[rows], sites).items():
            x = h[kept.to(h.device)]
            where, at_start = place.to(x.device), first.to(x.device)
            if len(x):
                moments.setdefault(site, _Moments(cells, x)).add(x, where)
                for by_site in tallies.values():
                    if site in by_site:
                        by_site[site].add(x, where, at_start)
    return {
        name: {site: tally.profile(moments[site]) for site, tally in sorted(by_site.items())}
        for name, by_site in tallies.items()
    }


class _Cells:
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
        self.n_tokens = torch.bincount(self.place[content], minlength=len(self))

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


class _Moments:
    """Sums of the activations at one site, per cell, about a shift."""

    def __init__(self, cells: _Cells, x: Float[Tensor, "batch d_in"]):
        self.cells = cells
        self.shift = x.double().mean(0)
        self.total = x.new_zeros(len(cells), x.shape[-1], dtype=torch.float64)
        self.square = x.new_zeros(len(cells), dtype=torch.float64)

    def add(self, x: Float[Tensor, "batch d_in"], place: Int[Tensor, "batch"]) -> None:
        moved = x.double() - self.shift
        self.total.index_add_(0, place, moved)
        self.square.index_add_(0, place, moved.pow(2).sum(-1))

    @property
    def mean(self) -> Float[Tensor, "d_in"]:
        return self.shift + self.total.sum(0) / self.cells.n_tokens.sum()

    def spread(self) -> Float[Tensor, "cells"]:
        """sum |x - mean x|^2 per cell, about the mean of all cells."""
        n, off = self.cells.n_tokens.to(self.total.device), self.mean - self.shift
        return self.square - 2 * self.total @ off + n * off.pow(2).sum()


class _Tally:
    """Sums of what one dictionary does, per cell, and counts per latent."""

    def __init__(self, cells: _Cells, dictionary: Dictionary, codes_at_once: int = CODES_AT_ONCE):
        self.cells, self.dictionary, directions = cells, dictionary, dictionary.directions
        self.error = directions.new_zeros(len(cells), dtype=torch.float64)
        self.active = directions.new_zeros(len(cells), dtype=torch.long)
        self.fired, self.started = directions.new_zeros(2, len(directions), dtype=torch.long)
        self.rows_at_once = max(1, codes_at_once // len(directions))
        self.cosine = self.ratio = 0.0
        self.n_nonzero = 0

    def add(self, x: Float[Tensor, "batch d_in"], place: Int[Tensor, "batch"], at_start: Bool[Tensor, "batch"]) -> None:
        """Count the tokens `x`; codes are dense for a few rows at a time."""
        for rows in zip(*(part.split(self.rows_at_once) for part in (x, place, at_start)), strict=True):
            self._add(*rows)

    def _add(self, x: Tensor, place: Tensor, at_start: Tensor) -> None:
        f = self.dictionary.encode(x)
        wide, x_hat, active = x.double(), self.dictionary.decode(f).double(), f != 0
        self.error.index_add_(0, place, (wide - x_hat).pow(2).sum(-1))
        self.active.index_add_(0, place, active.sum(-1))
        self.fired += active.sum(0)
        self.started += active[at_start].sum(0)
        size, size_hat = wide.norm(dim=-1), x_hat.norm(dim=-1)
        nonzero = size > 0
        cosine = (wide * x_hat).sum(-1) / (size * size_hat).clamp_min(torch.finfo(torch.float64).tiny)
        self.cosine += cosine[nonzero].sum().item()
        self.ratio += (size_hat[nonzero] / size[nonzero]).sum().item()
        self.n_nonzero += int(nonzero.sum())

    def profile(self, moments: _Moments) -> Profile:
        n, error, active = self.cells.n_tokens.double(), self.error.cpu(), self.active.cpu().double()
        spread, fired, started = moments.spread().cpu(), self.fired.cpu(), self.started.cpu()
        n_tokens, density = int(n.sum()), fired.double() / n.sum()
        table = torch.stack([n, error, spread, active]).unflatten(-1, (len(self.cells.positions), -1))
        return Profile(
            quality=Quality(
                fvu=(error.sum() / spread.sum()).item(),
                l0=(active.sum() / n_tokens).item(),
                dead=(fired == 0).double().mean().item(),
                n_tokens=n_tokens,
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
