"""Two histograms of a feature: of its activations, by token, and of what ablating it takes from a logit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.interventions.patch import ablate
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site, Stream

N_BINS = 20
N_TOKENS = 6
"""Tokens that are counted apart."""
N_DROPS = 256
"""Positions at which logits are read, at most."""
_CONTEXTS = 64
"""Contexts that are run again, at most."""
_AT_ONCE = 8
_WORK = 2e11
"""Multiplications in the blocks that one run of the contexts may take, about: fewer contexts of large models."""


@dataclass(frozen=True)
class TokenCounts:
    """How often a feature is active on one token, by bin of its activation."""

    token: str
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Histogram:
    """Activations where the feature is active, over their full range."""

    edges: tuple[float, ...]
    """`N_BINS` + 1 of them, from 0 (or the least activation, if that is negative) to the largest."""
    tokens: tuple[TokenCounts, ...]
    """The tokens on which the feature is active most often."""
    other: tuple[int, ...]
    """Counts per bin of all other tokens together."""
    zero: float
    """Share of content tokens on which the feature is not active; they are in no bin."""


@dataclass(frozen=True)
class Drops:
    """Logit with the feature less logit without it, where it is active, for the token that it affects most."""

    token: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float


def activation_histogram(
    activation: Float[Tensor, "contexts pos"],
    contexts: Int[Tensor, "contexts pos"],
    content: Bool[Tensor, "contexts pos"],
    names: Sequence[str],
) -> Histogram:
    """The histogram of a feature that is active somewhere; `names` has the text of every token."""
    active = content & (activation != 0)
    values, tokens = activation[active].double(), contexts[active]
    edges = _edges(min(0.0, values.min().item()), max(0.0, values.max().item()))
    often = torch.bincount(tokens).argsort(descending=True, stable=True)[:N_TOKENS]
    common = [token for token in often.tolist() if (tokens == token).any()]
    rest = ~torch.isin(tokens, torch.tensor(common))
    return Histogram(
        tuple(edges.tolist()),
        tuple(TokenCounts(names[int(token)], binned(values[tokens == token], edges)) for token in common),
        binned(values[rest], edges),
        1 - int(active.sum()) / int(content.sum()),
    )


def _edges(low: float, high: float) -> Float[Tensor, "edges"]:
    if low == high:
        low, high = low - 0.5, high + 0.5
    return torch.linspace(low, high, N_BINS + 1, dtype=torch.float64)


def binned(values: Float[Tensor, "n"], edges: Float[Tensor, "edges"]) -> tuple[int, ...]:
    """Values per bin [edge, next edge); the last bin has both its edges."""
    places = torch.bucketize(values, edges[1:-1], right=True)
    return tuple(torch.bincount(places, minlength=len(edges) - 1).tolist())


@torch.no_grad()
def logit_drops(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    feature: FeatureId,
    contexts: Int[Tensor, "contexts pos"],
    activation: Float[Tensor, "contexts pos"],
    *,
    generator: torch.Generator,
) -> Drops | None:
    """What ablating the feature at all positions takes from the logits, at positions where it is active.

        drop_t = (z_t - z'_t) - mean over tokens of (z - z')

    of the token t with the largest mean drop, whose logit the feature raises most; z are the logits, z' those with the
    feature ablated and the error term kept. The mean over tokens is removed since the softmax does not depend on it.
    At most `N_DROPS` positions of `_CONTEXTS` contexts, fewer of a large model, drawn with `generator`; None for a
    feature that is never active.
    """
    # Only `_CONTEXTS` rows are run again, `_AT_ONCE` at a time, and of their logits [places, vocab] only those at the
    # drawn places (row, position) are computed: in a small model the unembedding costs as much as all blocks.
    rows = (activation != 0).any(1).nonzero()[:, 0]
    if not len(rows):
        return None
    affordable = int(_WORK / (model.block_weights * contexts.shape[1]))
    rows = _drawn(rows, min(_CONTEXTS, max(_AT_ONCE, affordable)), generator)
    places = _drawn(activation[rows].nonzero(), N_DROPS, generator)
    parts = []
    for batch in torch.arange(len(rows)).split(_AT_ONCE):
        at = places[torch.isin(places[:, 0], batch)].to(model.device)
        finals = _finals(model, dictionaries, feature, contexts[rows[batch]], activation[rows[batch]])
        clean, ablated = (model.unembed(final[at[:, 0] - batch[0], at[:, 1]]) for final in finals)
        parts.append((clean - ablated - (clean - ablated).mean(-1, keepdim=True)).cpu())
    drops = torch.cat(parts)
    token = int(drops.double().mean(0).argmax())
    values = drops[:, token].double()
    edges = _edges(values.min().item(), values.max().item())
    return Drops(model.token_text(token), tuple(edges.tolist()), binned(values, edges), values.mean().item())


def _drawn(rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """At most `n` of the rows, drawn without replacement, in their order."""
    return rows[torch.randperm(len(rows), generator=generator)[:n].sort().values]


def _finals(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    feature: FeatureId,
    contexts: Int[Tensor, "batch pos"],
    activation: Float[Tensor, "batch pos"],
) -> tuple[Tensor, Tensor]:
    """The residual after the last block, in the clean run and with the feature ablated at all content positions.

    Blocks below the feature's are run once. A residual is edited directly, h - f_j d_j; at other sites, whose
    activation reaches the residual through the block's own weights, the feature's block is run again.
    """
    site, last = feature.site, model.sites()[-1]
    dictionary = dictionaries[site]
    if site.stream is Stream.RESID_POST:
        recorded = model.record(contexts, {site, last})
        contribution = activation.to(recorded[site])[..., None] * dictionary.directions[feature.index]
        return recorded[last], model.final(recorded[site] - contribution, site.layer)
    content = model.content(contexts).to(model.device)
    below = [Site(site.layer - 1)] if site.layer else []
    recorded = model.record(contexts, {*below, last})
    with model.hooks(ablate(site, dictionary, [feature.index], mask=content)):
        if below:
            return recorded[last], model.final(recorded[below[0]], site.layer - 1)
        return recorded[last], model.record(contexts, [last])[last]
