"""What every latent does on a text, counted in bounded memory.

Codes are dense for a few contexts at a time (`Chunks.codes` entries). Of them stay sums, the strongest
contexts of every latent with their activations around the peak, and 24 bytes for each pair of a latent and
a token on which it is ever active: at most as many pairs as there are active latents in the text, usually a
tenth of that. How the text is split into chunks does not show.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.atlas import FeatureAtlas
from circuits.features.reading import DEFAULT_CHUNKS, Chunks, Piece, SiteCounts, SiteStatistics
from circuits.features.survey import Survey
from sae_core.progress import OnProgress, silent
from sae_core.sites import Site

BEFORE, AFTER = 11, 4
"""Positions around a peak whose activations are kept."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """How the latents of a dictionary are active on each token: the pairs that occur, by latent, then by token."""

    latent: Int[Tensor, "pairs"]
    token: Int[Tensor, "pairs"]
    active: Int[Tensor, "pairs"]
    """Occurrences of the token on which the latent is active."""
    total: Float[Tensor, "pairs"]
    """Sum of its activations there."""


@dataclass(frozen=True, eq=False)
class SiteTally:
    """The latents of one dictionary on the content tokens of a text."""

    statistics: SiteStatistics
    nearby: Float[Tensor, "n_latents k around"]
    """Activations around the peaks of `statistics`, from `BEFORE` positions before to `AFTER` after; 0 outside."""
    active: Int[Tensor, "n_latents"]
    """Tokens on which the latent is active."""
    total: Float[Tensor, "n_latents"]
    square: Float[Tensor, "n_latents"]
    """Sums of activations and of their squares."""
    norm_share: Float[Tensor, "n_latents"]
    """Share of the activations' squared norm, without outliers: sum f_j^2 / sum |x|^2 (unit directions)."""
    pairs: Pairs


@dataclass(frozen=True, eq=False)
class Tally:
    """All latents of a set of dictionaries on a text."""

    atlas: FeatureAtlas
    sites: dict[Site, SiteTally]
    token_counts: Int[Tensor, "vocab"]
    """Occurrences of each token; special tokens count as none."""

    @property
    def n_tokens(self) -> int:
        """Content tokens."""
        return int(self.token_counts.sum())


def tally(
    survey: Survey,
    contexts: Int[Tensor, "contexts pos"],
    *,
    top: int = 8,
    chunks: Chunks = DEFAULT_CHUNKS,
    on_progress: OnProgress = silent,
) -> Tally:
    """What every latent does on a text; `top` contexts are kept per latent.

    Raises `UserError` where the text holds special tokens only.
    """
    top = min(top, len(contexts))
    directions, n_vocab = {site: d.directions for site, d in survey.dictionaries.items()}, survey.model.n_vocab
    strongest = {site: SiteCounts(d, top, before=BEFORE, after=AFTER) for site, d in directions.items()}
    sums = {site: _Sums(d, n_vocab, chunks.pairs) for site, d in directions.items()}

    def add(site: Site, piece: Piece) -> None:
        strongest[site].add(piece)
        sums[site].add(piece)

    survey.read(contexts, add, chunks=chunks, on_progress=on_progress)
    token_counts = torch.bincount(contexts[survey.model.content(contexts)], minlength=n_vocab)
    n_tokens = int(token_counts.sum())
    sites = {site: sums[site].tally(strongest[site], n_tokens) for site in directions}
    statistics = {site: latents.statistics for site, latents in sites.items()}
    return Tally(FeatureAtlas(survey, contexts, statistics), sites, token_counts)


class _Sums:
    """Sums over the content tokens of a text by latent, and by latent and token, while it is read."""

    def __init__(self, directions: Float[Tensor, "n_latents d_in"], n_vocab: int, merge_from: int):
        self.n_vocab = n_vocab
        new = directions.new_zeros
        self.square, self.norm = new(len(directions), dtype=torch.float64), new((), dtype=torch.float64)
        self.pairs = _PairSums(merge_from)

    def add(self, piece: Piece) -> None:
        """Count a piece of the text."""
        # f is sparse: all sums go over its nonzero entries, f_j at (row, position)
        row, position, latent = piece.f.nonzero(as_tuple=True)
        values = piece.f[row, position, latent].double()
        self.norm += piece.square
        self.square.index_add_(0, latent, values.square())
        self.pairs.add(latent * self.n_vocab + piece.tokens[row, position], values)

    def tally(self, strongest: SiteCounts, n_tokens: int) -> SiteTally:
        """All that was counted of one dictionary."""
        tiny = torch.finfo(torch.float64).tiny
        return SiteTally(
            strongest.statistics(n_tokens),
            strongest.nearby.cpu(),
            strongest.active.cpu(),
            strongest.total.cpu(),
            self.square.cpu(),
            norm_share=(self.square / self.norm.clamp_min(tiny)).cpu(),
            pairs=self.pairs.pairs(self.n_vocab),
        )


class _PairSums:
    """Counts and sums by key; what is added waits until it is worth a sort.

    A merge sorts all pairs. It happens once those that wait are twice as many as the merged ones, so that all merges
    together take time in proportion to what was added (times the logarithm of a sort).
    """

    def __init__(self, merge_from: int) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._waiting, self._merge_from = 0, merge_from

    def add(self, keys: Tensor, values: Tensor) -> None:
        part = _summed(keys, torch.ones_like(keys), values)
        self._parts.append(part)
        self._waiting += len(part[0])
        if self._waiting > max(self._merge_from, 2 * len(self._parts[0][0])):
            self._merge()

    def _merge(self) -> None:
        if len(self._parts) > 1:
            self._parts = [_summed(*(torch.cat(parts) for parts in zip(*self._parts, strict=True)))]
        self._waiting = 0

    def pairs(self, n_vocab: int) -> Pairs:
        self._merge()
        keys, active, total = (part.cpu() for part in self._parts[0])
        return Pairs(keys // n_vocab, keys % n_vocab, active, total)


def _summed(keys: Tensor, active: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each key once, in order, with the sums of what stands beside it."""
    unique, place = keys.unique(return_inverse=True)
    return (
        unique,
        torch.zeros_like(unique).index_add_(0, place, active),
        torch.zeros_like(unique, dtype=torch.float64).index_add_(0, place, total),
    )
