"""Where features are active, and which tokens they promote.

Of every latent of every site its density and its strongest contexts are kept: one token per context, so that a single
long passage cannot fill a feature's examples. All of it is counted from a `Survey`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.reading import DEFAULT_CHUNKS, Chunks, Piece, SiteCounts, SiteStatistics
from circuits.features.survey import Survey
from editing.interventions.add_direction import written
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, silent
from sae_core.sites import FeatureId, Site


@dataclass(frozen=True, eq=False)
class Examples:
    """Contexts on which a feature is active, each with the position of its largest activation."""

    tokens: Int[Tensor, "examples pos"]
    end: Int[Tensor, "examples"]
    activation: Float[Tensor, "examples"]

    def __len__(self) -> int:
        return len(self.end)


@runtime_checkable
class ExampleSource(Protocol):
    """Where examples of features come from."""

    def examples(self, feature: FeatureId, n: int) -> Examples:
        """At most `n` examples on which the feature is active, each read at one position."""
        ...


@dataclass(frozen=True, eq=False)
class FeatureAtlas:
    """All latents of a set of dictionaries on a text."""

    survey: Survey
    """What the text was read with."""
    contexts: Int[Tensor, "contexts pos"]
    sites: dict[Site, SiteStatistics]

    @cached_property
    def mean_final(self) -> Float[Tensor, "d_model"]:
        """Mean residual after the last block, where direct effects on the logits are read (`Survey.mean_final`)."""
        return self.survey.mean_final(self.contexts)

    def examples(self, feature: FeatureId, n: int) -> Examples:
        """The feature's `n` strongest examples with distinct texts, or fewer if the contexts kept hold no more."""
        site, latent = self.sites[feature.site], feature.index
        context, position, peak = site.context[latent], site.position[latent], site.top[latent]
        chosen, seen = [], set()
        for k in range(len(peak)):
            text = tuple(self.contexts[context[k], : int(position[k]) + 1].tolist())
            if peak[k] > 0 and text not in seen and len(chosen) < n:
                seen.add(text)
                chosen.append(k)
        return Examples(self.contexts[context[chosen]], position[chosen], peak[chosen])


def survey(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    *,
    top: int = 64,
    chunks: Chunks = DEFAULT_CHUNKS,
    on_progress: OnProgress = silent,
) -> FeatureAtlas:
    """`atlas_of` a text that no survey is kept of."""
    return atlas_of(Survey(model, dictionaries), contexts, top=top, chunks=chunks, on_progress=on_progress)


def atlas_of(
    survey: Survey,
    contexts: Int[Tensor, "contexts pos"],
    *,
    sites: Iterable[Site] | None = None,
    top: int = 64,
    chunks: Chunks = DEFAULT_CHUNKS,
    on_progress: OnProgress = silent,
) -> FeatureAtlas:
    """Statistics and the `top` strongest contexts of every latent of `sites`, by default of all."""
    n_strongest = min(top, len(contexts))
    counted = survey.dictionaries if sites is None else sites
    counts = {site: SiteCounts(survey.dictionaries[site].directions, n_strongest) for site in counted}

    def add(site: Site, piece: Piece) -> None:
        counts[site].add(piece)

    survey.read(contexts, add, sites=counts, chunks=chunks, on_progress=on_progress)
    n_tokens = int(survey.model.content(contexts).sum())
    statistics = {site: count.statistics(n_tokens) for site, count in counts.items()}
    return FeatureAtlas(survey, contexts, statistics)


@torch.no_grad()
def direct_effect(
    model: LanguageModel,
    atlas: FeatureAtlas,
    site: Site,
    directions: Float[Tensor, "k d_model"],
    latents: Int[Tensor, "k"],
) -> Float[Tensor, "k vocab"]:
    """Change of the logits when a latent is added, at its mean activation, to the mean final residual.

    Without the part that is equal for all tokens, which no probability notices.
    """
    strength = atlas.sites[site].mean_active[latents].to(directions)
    change = model.unembed(atlas.mean_final + strength[:, None] * directions) - model.unembed(atlas.mean_final)
    return change - change.mean(-1, keepdim=True)


def logit_changes(atlas: FeatureAtlas, site: Site, latents: Int[Tensor, "k"]) -> Float[Tensor, "k vocab"]:
    """What each latent adds to the logits directly, at its mean activation (`direct_effect`)."""
    model, directions = atlas.survey.model, atlas.survey.dictionaries[site].directions
    added = written(model, site, directions[latents.to(directions.device)])
    return direct_effect(model, atlas, site, added, latents)


def most_predictive(atlas: FeatureAtlas, site: Site, next_tokens: list[int]) -> FeatureId:
    """The latent whose activation correlates best with "one of `next_tokens` comes next".

    Among those of whose strongest examples at least four in five are followed by such a token, if there are any: a
    latent may correlate by its weak activations and mean something else where it is strong. Never one of a sink.
    """
    n, sum_y = 0, 0.0
    sums = torch.zeros(3, len(atlas.sites[site].density), dtype=torch.float64)  # of f, f^2, f y
    wanted = torch.tensor(next_tokens)

    def add(site: Site, piece: Piece) -> None:
        nonlocal sums, n, sum_y
        content, tokens = piece.content[:, :-1].cpu(), piece.tokens.cpu()
        f, y = piece.f[:, :-1].cpu()[content].double(), torch.isin(tokens[:, 1:], wanted)[content].double()
        sums += torch.stack([f.sum(0), f.pow(2).sum(0), y @ f])
        n, sum_y = n + len(y), sum_y + y.sum().item()

    atlas.survey.read(atlas.contexts, add, sites=[site])
    if not 0 < sum_y < n:
        raise UserError("none of the tokens that the target should predict stands in the text")
    mean = sums / n
    covariance = mean[2] - mean[0] * sum_y / n
    correlation = covariance / (mean[1] - mean[0].pow(2)).clamp_min(1e-12).sqrt()

    latents, n_pos = atlas.sites[site], atlas.contexts.shape[1]
    counted = (latents.top > 0) & (latents.position + 1 < n_pos)  # a peak at a context's end has nothing after it
    after = atlas.contexts[latents.context, (latents.position + 1).clamp_max(n_pos - 1)]
    clean = (torch.isin(after, wanted) & counted).sum(1) >= 0.8 * counted.sum(1).clamp_min(1)
    if latents.sinks.all():
        raise UserError(f"every latent at {site} belongs to an attention sink; name a target")
    clean &= ~latents.sinks
    allowed = clean if clean.any() else ~latents.sinks
    return FeatureId(site, int(correlation.masked_fill(~allowed, -torch.inf).argmax()))


def strongest_writer(model: LanguageModel, dictionary: Dictionary, site: Site, atlas: FeatureAtlas) -> FeatureId:
    """Of the latents of density between 1e-4 and 1e-2, the one with the largest direct effect on one logit."""
    return strongest_writers(model, dictionary, site, atlas, 1)[0]


def strongest_writers(
    model: LanguageModel, dictionary: Dictionary, site: Site, atlas: FeatureAtlas, n: int
) -> list[FeatureId]:
    """The `n` rare latents with the largest direct effects on one logit, strongest first."""
    latents = rare(site, atlas)
    strongest = [
        direct_effect(model, atlas, site, dictionary.directions[part], part).max(-1).values
        for part in latents.split(64)
    ]
    effects = torch.cat(strongest)
    return [FeatureId(site, int(latents[row])) for row in effects.topk(min(n, len(effects))).indices]


def loudest(dictionary: Dictionary, site: Site, atlas: FeatureAtlas, n: int) -> list[FeatureId]:
    """The `n` rare latents that write the longest vectors where they are most active: max f_j |d_j|, longest first."""
    latents = rare(site, atlas)
    lengths = atlas.sites[site].top[latents, 0] * dictionary.directions[latents].norm(dim=1).cpu()
    return [FeatureId(site, int(latents[row])) for row in lengths.topk(min(n, len(lengths))).indices]


def rare(site: Site, atlas: FeatureAtlas) -> Int[Tensor, "n"]:
    """The latents of density between 1e-4 and 1e-2; where none is that rare (a short text, a small dictionary), all
    that are ever active. Sinks never are. Raises `UserError` where no latent is left."""
    density, sinks = atlas.sites[site].density, atlas.sites[site].sinks
    allowed = ~sinks & (density >= 1e-4) & (density <= 1e-2) & (atlas.sites[site].top[:, -1] > 0)
    allowed = allowed if allowed.any() else ~sinks & (density > 0)
    if not allowed.any():
        raise UserError(f"no latent at {site} is ever active on this text")
    return allowed.nonzero()[:, 0]
