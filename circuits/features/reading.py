"""A text's codes piece by piece in bounded memory, and what is counted of a latent: densities, strongest contexts.

`survey.py` gives the pieces; what else is counted of them is the caller's.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
    f: Float[Tensor, "contexts pos n_latents"]
    """The codes, zero outside content."""
    beyond: Float[Tensor, "n_latents"]
    """Sums over outliers (`sae_core/outliers.py`) of |code|, of the codes that they would have."""
    n_inliers: int
    """Content tokens that are no outliers."""
    total: Float[Tensor, "d_in"]
    """Sum of their activations."""
    square: float
    """Sum of their squared norms."""

    @property
    def at_start(self) -> Bool[Tensor, "contexts pos"]:
        """Which tokens are the first content token of their context."""
        return self.content & (self.content.cumsum(1) == 1)


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
