"""What every latent does on a text, counted in one pass and in bounded memory.

Codes are dense for a few contexts at a time (`Chunks.codes` entries). Of them stay sums, the strongest
contexts of every latent with their activations around the peak, and 24 bytes for each pair of a latent and
a token on which it is ever active: at most as many pairs as there are active latents in the text, usually a
tenth of that. How the text is split into chunks does not show.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.atlas import FeatureAtlas, SiteStatistics
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Stages, silent
from sae_core.sites import FeatureId, Site

BEFORE, AFTER = 11, 4
"""Positions around a peak whose activations are kept."""
CODES_AT_ONCE = 2**23


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
    first_position: Float[Tensor, "n_latents"]
    """Share of the sum of |activation| that falls on contexts' first content tokens."""
    norm_share: Float[Tensor, "n_latents"]
    """Share of the activations' squared norm: sum f_j^2 / sum |x|^2, the directions being unit vectors."""
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


@torch.no_grad()
def tally(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    *,
    top: int = 8,
    chunks: Chunks = Chunks(),
    on_progress: OnProgress = silent,
) -> Tally:
    """What every latent does on a text, in one pass; `top` contexts are kept per latent.

    Raises `UserError` where the text holds special tokens only.
    """
    content = model.content(contexts)
    if not content.any():
        raise UserError("the text holds no tokens but special ones; give another text")
    first = content & (content.cumsum(-1) == 1)
    last = model.sites()[-1]
    final = torch.zeros(model.d_model, dtype=torch.float64, device=model.device)
    counts = {site: _Counts(dictionary, model.n_vocab, top, chunks) for site, dictionary in dictionaries.items()}
    announced = chunks.stages(len(contexts))
    stages = Stages(on_progress, len(announced))
    for number, rows in enumerate(torch.arange(len(contexts)).split(chunks.contexts)):
        if number in announced:
            stages.begin(announced[number])
        recorded = model.record(contexts[rows], {*dictionaries, last})
        final += recorded[last][content[rows].to(model.device)].double().sum(0)
        for site, own in counts.items():
            own.add(recorded[site], contexts[rows], content[rows], first[rows], int(rows[0]))
    token_counts = torch.bincount(contexts[content], minlength=model.n_vocab)
    n_tokens = int(token_counts.sum())
    sites = {site: own.tally(n_tokens) for site, own in counts.items()}
    statistics = {site: own.statistics for site, own in sites.items()}
    return Tally(FeatureAtlas(contexts, statistics, (final / n_tokens).float()), sites, token_counts)


class _Counts:
    """Sums and strongest contexts of one dictionary, while the text is read."""

    def __init__(self, dictionary: Dictionary, n_vocab: int, top: int, chunks: Chunks):
        self.dictionary, self.n_vocab, self.chunks = dictionary, n_vocab, chunks
        n, new = len(dictionary.directions), dictionary.directions.new_zeros
        self.active = new(n, dtype=torch.long)
        self.total, self.square, self.started, self.size = (new(n, dtype=torch.float64) for _ in range(4))
        self.norm = new((), dtype=torch.float64)
        self.top = new(n, top)
        self.context, self.position = new(2, n, top, dtype=torch.long)
        self.nearby = new(n, top, BEFORE + 1 + AFTER)
        self.pairs = _PairSums(chunks.pairs)

    def add(self, h: Tensor, tokens: Tensor, content: Tensor, first: Tensor, start: int) -> None:
        """Count contexts, of which the first is number `start` of the text."""
        few = max(1, self.chunks.codes // (h.shape[1] * len(self.top)))
        for rows in torch.arange(len(h)).split(few):
            own = (part[rows].to(h.device) for part in (tokens, content, first))
            self._add(h[rows.to(h.device)], *own, start + int(rows[0]))

    def _add(self, h: Tensor, tokens: Tensor, content: Tensor, first: Tensor, start: int) -> None:
        f = self.dictionary.encode(h)
        row, position, latent = f.nonzero(as_tuple=True)
        kept = content[row, position]
        row, position, latent = row[kept], position[kept], latent[kept]
        values = f[row, position, latent]
        wide, at_start = values.double(), first[row, position]
        self.norm += h[content].double().square().sum()
        self.active += torch.bincount(latent, minlength=len(self.active))
        self.total.index_add_(0, latent, wide)
        self.square.index_add_(0, latent, wide.square())
        self.size.index_add_(0, latent, wide.abs())
        self.started.index_add_(0, latent[at_start], wide[at_start].abs())
        self.pairs.add(latent * self.n_vocab + tokens[row, position], wide)
        n = len(self.active)
        peak, where = _peaks(row * n + latent, position, values, len(f) * n, f.shape[1])
        self._keep(f, content, peak.view(-1, n), where.view(-1, n), start)

    def _keep(self, f: Tensor, content: Tensor, peak: Tensor, where: Tensor, start: int) -> None:
        """Let each context's peak compete with the strongest so far; of equal ones the earlier stays."""
        better = (peak.max(0).values > self.top[:, -1]).nonzero()[:, 0]
        if not len(better):
            return
        around = where[:, better, None] + torch.arange(-BEFORE, AFTER + 1, device=f.device)
        place, rows = around.clamp(0, f.shape[1] - 1), torch.arange(len(f), device=f.device)[:, None, None]
        nearby = f[rows, place, better[:, None]] * (content[rows, place] & (place == around))
        context = (start + rows[:, :, 0]).expand(-1, len(better))
        found = (peak[:, better].T, context.T, where[:, better].T, nearby.transpose(0, 1))
        order = torch.cat([self.top[better], found[0]], 1).sort(dim=1, descending=True, stable=True).indices
        order = order[:, : self.top.shape[1]]
        for own, new in zip((self.top, self.context, self.position, self.nearby), found, strict=True):
            both = torch.cat([own[better], new], 1)
            index = order if both.ndim == 2 else order[..., None].expand(-1, -1, both.shape[2])
            own[better] = both.gather(1, index)

    def tally(self, n_tokens: int) -> SiteTally:
        statistics = SiteStatistics(
            density=(self.active.double() / n_tokens).float().cpu(),
            mean_active=(self.total / self.active.clamp_min(1)).float().cpu(),
            top=self.top.cpu(),
            context=self.context.cpu(),
            position=self.position.cpu(),
        )
        tiny = torch.finfo(torch.float64).tiny
        return SiteTally(
            statistics,
            self.nearby.cpu(),
            self.active.cpu(),
            self.total.cpu(),
            self.square.cpu(),
            first_position=(self.started / self.size.clamp_min(tiny)).cpu(),
            norm_share=(self.square / self.norm.clamp_min(tiny)).cpu(),
            pairs=self.pairs.pairs(self.n_vocab),
        )


def _peaks(key: Tensor, position: Tensor, values: Tensor, n_keys: int, n_pos: int) -> tuple[Tensor, Tensor]:
    """The largest of the values of each key, and the first position that has it; 0 where none is positive."""
    peak = values.new_zeros(n_keys).scatter_reduce(0, key, values, "amax")
    at = values == peak[key]
    where = torch.full((n_keys,), n_pos, device=key.device).scatter_reduce(0, key[at], position[at], "amin")
    return peak, where.where(where < n_pos, 0)


class _PairSums:
    """Counts and sums by key; what is added waits until it is worth a sort."""

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


@torch.no_grad()
def activations(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    features: list[FeatureId],
    contexts: Int[Tensor, "contexts pos"],
    *,
    at_once: int = 16,
) -> dict[FeatureId, Float[Tensor, "contexts pos"]]:
    """The activations of a few features on a text, 0 on special tokens; 4 bytes a token and feature.

    Every dictionary encodes a few contexts at a time, and of the codes only these features' columns stay.
    """
    found = {feature: torch.zeros(contexts.shape) for feature in features}
    latents = {site: [f.index for f in features if f.site == site] for site in {f.site for f in features}}
    for rows in torch.arange(len(contexts)).split(at_once):
        content = model.content(contexts[rows])
        for site, h in model.record(contexts[rows], latents).items():
            codes = _columns(dictionaries[site], h, latents[site]).cpu() * content[..., None]
            for column, index in enumerate(latents[site]):
                found[FeatureId(site, index)][rows] = codes[..., column]
    return found


def _columns(dictionary: Dictionary, h: Float[Tensor, "contexts pos d_in"], latents: list[int]) -> Tensor:
    """Codes of a few latents `[contexts, pos, latents]`, encoded a few contexts at a time."""
    few = max(1, CODES_AT_ONCE // (h.shape[1] * len(dictionary.directions)))
    return torch.cat([dictionary.encode(part)[..., latents] for part in h.split(few)])
