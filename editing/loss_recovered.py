"""Run the model on reconstructions, and what that costs its prediction.

    loss recovered = (ablated - spliced) / (ablated - original)

of next-token cross-entropies, means over content tokens in nats. Every dictionary is spliced in alone, at all content
positions; BOS and special tokens are neither edited nor scored. Outliers (`sae_core/outliers.py`) are left alone by the
splice and by the ablations alike, so that loss recovered speaks of the tokens that a dictionary is for.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import nlargest
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.edited_contexts import EditedContexts
from editing.interventions.masks import Mask, where_inlier
from editing.interventions.patch import codes
from sae_core.codec import finite
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import limits_of, outlier_norm_of
from sae_core.sites import Site


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
    for tokens in contexts.split(model.at_once(at_once)):
        chunk = EditedContexts(model, tokens, dictionaries)
        for site, dictionary in dictionaries.items():
            zeroed = chunk.constant(site, outlier_norm_of(dictionary))
            edited = chunk.costs([Splice(site, dictionary, chunk.mask), zeroed])
            sums[site] += torch.cat([chunk.original, edited]).sum(-1)
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
    at_once = model.at_once(at_once)
    for number, tokens in enumerate(contexts.split(at_once)):
        chunk = EditedContexts(model, tokens, sharing)
        for site, names in sharing.items():
            ablations = [chunk.constant(site, limits[site]), chunk.constant(site, limits[site], means[site])]
            nll, kl = chunk.losses([*ablations, *(Splice(site, sets[name][site], chunk.mask) for name in names)])
            sums[site] += torch.stack([nll.sum(-1), torch.cat([torch.zeros(1), kl.sum(-1)])])
            for name, spliced in zip(names, nll[3:], strict=True):
                of_chunk = _most_hurt(chunk, nll[0], spliced, worst, first=number * at_once)
                hurt[name, site] = nlargest(worst, [*hurt[name, site], *of_chunk], key=lambda context: context.lost)
    n_tokens = int(model.content(contexts[:, 1:]).sum())
    reports: dict[str, dict[Site, SpliceReport]] = {name: {} for name in sets}
    for site, names in sharing.items():
        original, zeroed, averaged, *spliced = (Loss(*pair) for pair in (sums[site] / n_tokens).T.tolist())
        for name, loss in zip(names, spliced, strict=True):
            reports[name][site] = SpliceReport(n_tokens, original, loss, zeroed, averaged, tuple(hurt[name, site]))
    return reports


def _most_hurt(
    chunk: EditedContexts, original: Float[Tensor, "tokens"], spliced: Float[Tensor, "tokens"], n: int, *, first: int
) -> list[Hurt]:
    """The `n` contexts whose perplexity rises the most; `first` is the number of the chunk's first context."""
    scored = chunk.scored.cpu()
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
            tokens=tuple(chunk.model.token_text(token) for token in chunk.tokens[row].tolist()),
            rise=(
                None,
                *(value if kept else None for value, kept in zip(rise[row].tolist(), scored[row], strict=True)),
            ),
        )
        for row in order[:n].tolist()
        if scored[row].any()
    ]
