"""Reading a text through dictionaries: codes piece by piece in bounded memory, and the strongest contexts of a latent.

What is counted is the caller's: `atlas.survey` keeps densities and strongest contexts, `statistics.tally` more.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import inliers, outlier_norm_of
from sae_core.progress import OnProgress, Stages, silent
from sae_core.sites import Site

CODES_AT_ONCE = 2**23
_SINK = 4
"""First tokens of contexts on which a latent is active at least, to be one of a sink: fewer may be chance."""
_NO_TOKEN = 2**62
"""Larger than any token."""


@dataclass(frozen=True)
class Chunks:
    """How much of a text is held at once; the numbers do not depend on it."""

    contexts: int = 16
    """Contexts per forward pass."""
    codes: int = CODES_AT_ONCE
    """Entries of dense codes."""
    pairs: int = 2**20
    """Pairs of latent and token that may wait before they are merged with the others."""

    def stages(self, n_contexts: int) -> dict[int, str]:
        """The stages of reading a text, by the number of the forward pass at which each begins: four, or fewer."""
        starts = range(0, n_contexts, self.contexts)
        begins = sorted({len(starts) * quarter // 4 for quarter in range(4)})
        return {number: f"reading from context {starts[number]:,} of {n_contexts:,}" for number in begins}


DEFAULT_CHUNKS = Chunks()


@dataclass(frozen=True, eq=False)
class Piece:
    """A few consecutive contexts of a text with the codes of one dictionary."""

    start: int
    """The number of the first of them in the text."""
    tokens: Int[Tensor, "contexts pos"]
    content: Bool[Tensor, "contexts pos"]
    x: Float[Tensor, "contexts pos d_in"]
    f: Float[Tensor, "contexts pos n_latents"]
    """The codes of `x`, zero outside content."""
    limit: float = math.inf
    """The norm above which a token is an outlier."""
    beyond: Float[Tensor, "n_latents"] | None = None
    """Sums over outliers of |code|, of the codes that they would have; None where there are no outliers."""

    @property
    def kept(self) -> Bool[Tensor, "contexts pos"]:
        """Content without outliers."""
        return self.content if self.limit == math.inf else self.content & inliers(self.x, self.limit)

    @property
    def at_start(self) -> Bool[Tensor, "contexts pos"]:
        """Which tokens are the first content token of their context."""
        return self.content & (self.content.cumsum(1) == 1)


@torch.no_grad()
def read_text(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    add: Callable[[Site, Piece], None],
    chunks: Chunks = DEFAULT_CHUNKS,
    on_progress: OnProgress = silent,
) -> Float[Tensor, "d_model"]:
    """The mean residual after the last block, over content tokens; every site's pieces are given to `add` in order.

    Raises `UserError` where the text holds special tokens only.
    """
    content, last = model.content(contexts), model.sites()[-1]
    if not content.any():
        raise UserError("the text holds no tokens but special ones; give another text")
    final = torch.zeros(model.d_model, dtype=torch.float64, device=model.device)
    announced = chunks.stages(len(contexts))
    stages = Stages(on_progress, len(announced))
    for number, rows in enumerate(torch.arange(len(contexts)).split(chunks.contexts)):
        if number in announced:
            stages.begin(announced[number])
        recorded = model.record(contexts[rows], {*dictionaries, last})
        tokens, mask = contexts[rows].to(model.device), content[rows].to(model.device)
        final += recorded[last][mask].double().sum(0)
        for site, dictionary in dictionaries.items():
            few = max(1, chunks.codes // (tokens.shape[1] * len(dictionary.directions)))
            parts = zip(*(part.split(few) for part in (tokens, mask, recorded[site])), strict=True)
            for place, (some_tokens, some_mask, x) in enumerate(parts):
                f = dictionary.encode(x) * some_mask[..., None]
                beyond = _beyond(dictionary, x[some_mask])
                limit = outlier_norm_of(dictionary)
                add(site, Piece(int(rows[0]) + place * few, some_tokens, some_mask, x, f, limit, beyond))
    return (final / content.sum()).float()


def _beyond(dictionary: Dictionary, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "n_latents"] | None:
    limit = outlier_norm_of(dictionary)
    if limit == math.inf:
        return None
    outliers = x[~inliers(x, limit)]
    plain = getattr(dictionary, "codes", dictionary.encode)
    return plain(outliers).abs().sum(0, dtype=torch.float64) if len(outliers) else None


@dataclass(frozen=True, eq=False)
class SiteStatistics:
    """The latents of one dictionary on a text."""

    density: Float[Tensor, "n_latents"]
    """Share of content tokens on which the latent is active."""
    mean_active: Float[Tensor, "n_latents"]
    """Mean activation where active; zero for a latent that never is."""
    at_first: Float[Tensor, "n_latents"]
    """Share of the sum of |activation| that falls on contexts' first content tokens."""
    on_outliers: Float[Tensor, "n_latents"]
    """Share of it that would fall on outliers (`sae_core/outliers.py`), which have no codes."""
    sinks: Bool[Tensor, "n_latents"]
    """Latents that belong to attention sinks: half of their activation, on at least `_SINK` tokens that are not all the
    same word, falls where a context begins, or half of it would fall on outliers. They are never a default target,
    and a search does not follow them unless told to."""
    top: Float[Tensor, "n_latents k"]
    """Largest activations, one per context, falling; zero where fewer contexts activate the latent."""
    context: Int[Tensor, "n_latents k"]
    position: Int[Tensor, "n_latents k"]


class SiteCounts:
    """How often the latents of a dictionary are active, and their strongest contexts, while a text is read.

    Invariant: after any pieces, `top[j]` holds the largest peaks of latent j over the contexts read so far, falling,
    one per context, zero where fewer contexts activate it; of equal peaks the earlier context stays. `nearby` are
    the activations from `before` positions before each peak to `after` behind it, zero outside the context.
    """

    def __init__(self, directions: Float[Tensor, "n_latents d_in"], top: int, *, before: int = 0, after: int = 0):
        n, new = len(directions), directions.new_zeros
        self.active, self.total = new(n, dtype=torch.long), new(n, dtype=torch.float64)
        self.size, self.started, self.beyond = new(3, n, dtype=torch.float64)
        self.n_started = new(n, dtype=torch.long)
        self.first_tokens = torch.stack([new(n, dtype=torch.long) + _NO_TOKEN, new(n, dtype=torch.long) - 1])
        """The least and the largest first token of a context on which a latent is active."""
        self.top = new(n, top)
        self.context, self.position = new(2, n, top, dtype=torch.long)
        self.nearby = new(n, top, before + 1 + after)
        self._offsets = torch.arange(-before, after + 1, device=directions.device)

    def add(self, piece: Piece) -> None:
        """Count a piece of the text, the next one."""
        f = piece.f
        self.active += (f != 0).sum((0, 1))
        self.total += f.sum((0, 1), dtype=torch.float64)
        self.size += f.abs().sum((0, 1), dtype=torch.float64)
        first = f[piece.at_start]
        self.started += first.abs().sum(0, dtype=torch.float64)
        self.n_started += (first != 0).sum(0)
        tokens = piece.tokens[piece.at_start][:, None].expand_as(first)
        if len(tokens):
            least, largest = self.first_tokens
            self.first_tokens[0] = torch.minimum(least, tokens.masked_fill(first == 0, _NO_TOKEN).amin(0))
            self.first_tokens[1] = torch.maximum(largest, tokens.masked_fill(first == 0, -1).amax(0))
        if piece.beyond is not None:
            self.beyond += piece.beyond
        peak, where = f.max(1)  # [contexts, n_latents]: the first of equal positions
        better = (peak.amax(0) > self.top[:, -1]).nonzero()[:, 0]
        if not len(better):
            return
        around = where[:, better, None] + self._offsets  # [contexts, better, around]
        place, rows = around.clamp(0, f.shape[1] - 1), torch.arange(len(f), device=f.device)[:, None, None]
        nearby = f[rows, place, better[:, None]] * (place == around)
        context = (piece.start + rows[:, :, 0]).expand(-1, len(better))
        new = (peak[:, better].T, context.T, where[:, better].T, nearby.transpose(0, 1))
        order = torch.cat([self.top[better], new[0]], 1).sort(dim=1, descending=True, stable=True).indices
        order = order[:, : self.top.shape[1]]
        for kept, more in zip((self.top, self.context, self.position, self.nearby), new, strict=True):
            both = torch.cat([kept[better], more], 1)
            index = order if both.ndim == 2 else order[..., None].expand(-1, -1, both.shape[2])
            kept[better] = both.gather(1, index)

    def statistics(self, n_tokens: int) -> SiteStatistics:
        """The statistics of a text of `n_tokens` content tokens."""
        size = (self.size + self.beyond).clamp_min(torch.finfo(torch.float64).tiny)
        at_first, several = 2 * self.started >= size, self.first_tokens[0] < self.first_tokens[1]
        return SiteStatistics(
            density=(self.active.double() / n_tokens).float().cpu(),
            mean_active=(self.total / self.active.clamp_min(1)).float().cpu(),
            at_first=(self.started / size).float().cpu(),
            on_outliers=(self.beyond / size).float().cpu(),
            sinks=((at_first & (self.n_started >= _SINK) & several) | (2 * self.beyond >= size)).cpu(),
            top=self.top.cpu(),
            context=self.context.cpu(),
            position=self.position.cpu(),
        )
