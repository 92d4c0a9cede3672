"""Run the model on reconstructions, and what that costs its prediction.

    loss recovered = (ablated - spliced) / (ablated - original)

of next-token cross-entropies, means over content tokens in nats. Every dictionary is spliced in alone, at all content
positions; BOS and special tokens are neither edited nor scored. Outliers (`sae_core/outliers.py`) are left alone by the
splice and by the ablations alike, so that loss recovered speaks of the tokens that a dictionary is for. Blocks below a
site run once for all edits of a chunk, and logits are there for a few tokens at a time only.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.interventions.masks import Mask, where_inlier
from editing.interventions.patch import codes
from editing.metrics import kl_from_log_probs
from sae_core.codec import finite
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.outliers import limits_of, outlier_norm_of
from sae_core.sites import Site

LOGITS_AT_ONCE = 2**24
"""Logits in memory at a time, in each of the few tensors that hold them."""


@dataclass(frozen=True, eq=False)
class Splice:
    """The reconstruction x_hat in place of the activation x; `patch.splice_with_error` keeps the error."""

    site: Site
    dictionary: Dictionary
    mask: Mask = None

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        return where_inlier(self.dictionary, self.mask, self.dictionary.decode(codes(self.site, self.dictionary, h)), h)


@dataclass(frozen=True)
class SpliceCost:
    """Next-token cross-entropy, nats per content token, of the model, with x_hat, and with the site set to zero."""

    original: float
    spliced: float
    zeroed: float

    @property
    def recovered(self) -> float:
        """Loss recovered: spliced loss on the scale zero-ablated = 0, original = 1; NaN where the two are equal."""
        return _recovered(self.original, self.spliced, self.zeroed)


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def _recovered(original: float, spliced: float, ablated: float) -> float:
    return (ablated - spliced) / (ablated - original) if ablated != original else math.nan


@dataclass(frozen=True)
class Loss:
    """What the next-token prediction is worth under one edit, means over tokens in nats."""

    cross_entropy: float
    kl: float
    """KL(model || edited)."""

    @property
    def perplexity(self) -> float:
        """exp of the cross-entropy; infinite beyond what a float holds."""
        return _exp(self.cross_entropy)

    def to_json(self) -> dict[str, float | None]:
        """All three numbers; null where one is infinite."""
        numbers = {"cross_entropy": self.cross_entropy, "kl": self.kl, "perplexity": self.perplexity}
        return {name: finite(value) for name, value in numbers.items()}


@dataclass(frozen=True)
class Hurt:
    """A context whose prediction suffers from the splice."""

    context: int
    """Its number among those measured."""
    position: int
    """Where the token is, the prediction of which suffers most."""
    perplexity: float
    perplexity_spliced: float
    tokens: tuple[str, ...]
    """The whole context, as text."""
    rise: tuple[float | None, ...]
    """By how many nats the splice makes each token less expected; None for those that are not scored."""

    @property
    def lost(self) -> float:
        """By how much the perplexity rises."""
        return self.perplexity_spliced - self.perplexity

    def to_json(self) -> dict[str, Any]:
        """The fields; null where a perplexity is infinite."""
        return {
            "context": self.context,
            "position": self.position,
            "perplexity": finite(self.perplexity),
            "perplexity_spliced": finite(self.perplexity_spliced),
            "tokens": list(self.tokens),
            "rise": [None if rise is None else finite(round(rise, 4)) for rise in self.rise],
        }


@dataclass(frozen=True)
class SpliceReport:
    """A dictionary spliced in, beside the two ablations of its site that remove everything."""

    n_tokens: int
    """Tokens scored: all content tokens but those that begin a context."""
    original: Loss
    spliced: Loss
    zeroed: Loss
    """With the site set to zero."""
    averaged: Loss
    """With the site set to its mean."""
    worst: tuple[Hurt, ...]
    """The contexts whose perplexity rises the most, the worst first."""

    @property
    def recovered(self) -> float:
        """Loss recovered on the scale zero-ablated = 0, original = 1; NaN where the two are equal."""
        return _recovered(self.original.cross_entropy, self.spliced.cross_entropy, self.zeroed.cross_entropy)

    @property
    def recovered_from_mean(self) -> float:
        """Loss recovered on the scale mean-ablated = 0, original = 1; NaN where the two are equal."""
        return _recovered(self.original.cross_entropy, self.spliced.cross_entropy, self.averaged.cross_entropy)

    def to_json(self) -> dict[str, Any]:
        """All raw numbers, and the ratios made of them; null where one has no value."""
        losses = ("original", "spliced", "zeroed", "averaged")
        return {
            "n_tokens": self.n_tokens,
            **{name: getattr(self, name).to_json() for name in losses},
            "loss_recovered": finite(self.recovered),
            "loss_recovered_from_mean": finite(self.recovered_from_mean),
            "worst": [hurt.to_json() for hurt in self.worst],
        }


@torch.no_grad()
def splice_costs(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    *,
    at_once: int = 32,
) -> dict[Site, SpliceCost]:
    """What each dictionary costs, alone, at all content positions; BOS keeps its activation."""
    sums = {site: torch.zeros(3, dtype=torch.float64) for site in dictionaries}
    for tokens in contexts.split(at_once):
        chunk = _Chunk(model, tokens, dictionaries)
        for site, dictionary in dictionaries.items():
            limit = outlier_norm_of(dictionary)
            nll, _ = chunk.losses([Splice(site, dictionary, chunk.mask), chunk.constant(site, limit)])
            sums[site] += nll.sum(-1)
    n_tokens = int(model.content(contexts[:, 1:]).sum())
    return {site: SpliceCost(*(total / n_tokens).tolist()) for site, total in sums.items()}


@torch.no_grad()
def splice_reports(
    model: LanguageModel,
    sets: Mapping[str, Mapping[Site, Dictionary]],
    means: Mapping[Site, Float[Tensor, "_"]],
    contexts: Int[Tensor, "contexts pos"],
    *,
    worst: int = 4,
    at_once: int = 16,
) -> dict[str, dict[Site, SpliceReport]]:
    """What every dictionary of every set costs, alone, at all content positions.

    `means` holds what mean-ablation writes: the mean activation of each site (`Profile.mean`). The ablations
    of a site run once for all its dictionaries.
    """
    sites = sorted({site for dictionaries in sets.values() for site in dictionaries})
    sharing = {site: [name for name, dictionaries in sets.items() if site in dictionaries] for site in sites}
    limits = limits_of(sets.values())
    sums: dict[Site, Any] = dict.fromkeys(sharing, 0.0)
    hurt: dict[tuple[str, Site], list[Hurt]] = {(name, site): [] for site, names in sharing.items() for name in names}
    for number, tokens in enumerate(contexts.split(at_once)):
        chunk = _Chunk(model, tokens, sharing)
        for site, names in sharing.items():
            ablations = [chunk.constant(site, limits[site]), chunk.constant(site, limits[site], means[site])]
            nll, kl = chunk.losses([*ablations, *(Splice(site, sets[name][site], chunk.mask) for name in names)])
            sums[site] += torch.stack([nll.sum(-1), torch.cat([torch.zeros(1), kl.sum(-1)])])
            for name, spliced in zip(names, nll[3:], strict=True):
                of_chunk = chunk.most_hurt(nll[0], spliced, worst, first=number * at_once)
                hurt[name, site] = nlargest(worst, [*hurt[name, site], *of_chunk], key=lambda context: context.lost)
    n_tokens = int(model.content(contexts[:, 1:]).sum())
    reports: dict[str, dict[Site, SpliceReport]] = {name: {} for name in sets}
    for site, names in sharing.items():
        original, zeroed, averaged, *spliced = (Loss(*pair) for pair in (sums[site] / n_tokens).T.tolist())
        for name, loss in zip(names, spliced, strict=True):
            reports[name][site] = SpliceReport(n_tokens, original, loss, zeroed, averaged, tuple(hurt[name, site]))
    return reports


@dataclass(frozen=True, eq=False)
class _Constant:
    """One vector in place of every activation, where a splice would write, too: outliers are left alone."""

    site: Site
    value: Tensor
    mask: Mask
    outlier_norm: float

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        return where_inlier(self, self.mask, self.value.expand_as(h), h)


class _Chunk:
    """Contexts that have been read once, to be read again with edits."""

    def __init__(self, model: LanguageModel, tokens: Int[Tensor, "batch pos"], sites: Iterable[Site]):
        self.model, self.tokens, self.last = model, tokens, Site(model.n_layers - 1)
        self.mask = model.content(tokens[:, :-1]).to(model.device)
        self.scored = model.content(tokens[:, 1:]).to(model.device)
        """Positions whose next token is scored."""
        below = {Site(site.layer - 1) for site in sites if site.layer > 0}
        self.h = model.record(tokens[:, :-1], {*below, self.last})

    def constant(self, site: Site, limit: float, value: Tensor | None = None) -> "_Constant":
        """The edit that writes `value`, by default zero, at every content position with a norm up to `limit`."""
        value = torch.zeros(self.model.d_in(site)) if value is None else value
        return _Constant(site, value.float().to(self.model.device), self.mask, limit)

    def losses(
        self, edits: Sequence[Intervention]
    ) -> tuple[Float[Tensor, "edits_and_none tokens"], Float[Tensor, "edits tokens"]]:
        """-log p of every scored token without edit and with each, and KL(without || with each); in float64."""
        finals = torch.stack([self.h[self.last][self.scored], *(self._final(edit) for edit in edits)])
        targets = self.tokens[:, 1:].to(self.model.device)[self.scored]
        if not len(targets):
            return torch.zeros(len(finals), 0).double(), torch.zeros(len(edits), 0).double()
        nll, kl, few = [], [], max(1, LOGITS_AT_ONCE // (self.model.n_vocab * len(finals)))
        for rows, wanted in zip(finals.split(few, dim=1), targets.split(few), strict=True):
            log_probs = self.model.unembed(rows).log_softmax(-1)
            clean, edited = log_probs[:1], log_probs[1:]
            nll.append(-log_probs.gather(-1, wanted.expand(len(rows), -1)[..., None])[..., 0])
            kl.append(kl_from_log_probs(clean, edited))
        return torch.cat(nll, -1).double().cpu(), torch.cat(kl, -1).double().cpu()

    def most_hurt(
        self, original: Float[Tensor, "tokens"], spliced: Float[Tensor, "tokens"], n: int, *, first: int
    ) -> list[Hurt]:
        """The `n` contexts whose perplexity rises the most; `first` is the number of the chunk's first context."""
        scored = self.scored.cpu()
        before, after = (torch.full(scored.shape, math.nan, dtype=torch.float64) for _ in range(2))
        before[scored], after[scored] = original, spliced
        perplexity, perplexity_spliced = before.nanmean(-1).exp(), after.nanmean(-1).exp()
        rise = after - before
        order = (perplexity_spliced - perplexity).nan_to_num(-math.inf).argsort(descending=True)
        return [
            Hurt(
                context=first + row,
                position=1 + int(rise[row].nan_to_num(-math.inf).argmax()),
                perplexity=perplexity[row].item(),
                perplexity_spliced=perplexity_spliced[row].item(),
                tokens=tuple(self.model.token_text(token) for token in self.tokens[row].tolist()),
                rise=(
                    None,
                    *(value if kept else None for value, kept in zip(rise[row].tolist(), scored[row], strict=True)),
                ),
            )
            for row in order[:n].tolist()
            if scored[row].any()
        ]

    def _final(self, edit: Intervention) -> Float[Tensor, "tokens d_model"]:
        """The last residual, at the positions before the scored tokens, under one edit."""
        layer = edit.site.layer - 1
        with self.model.hooks(edit):
            if layer < 0:
                final = self.model.record(self.tokens[:, :-1], [self.last])[self.last]
            else:
                final = self.model.final(self.h[Site(layer)], layer)
        return final[self.scored]
