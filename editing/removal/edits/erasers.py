"""Erasers of a concept in their best form: LEACE, and two projections along the difference of the class means.

Each is fitted on three choices of tokens: the prompts' last ones, the mentions of the concept (a name's last token),
and every token from the first mention on. The best of the three is taken, by what it does to prompts on which it was
not fitted and to the text for choosing (`Reach.cost`, in which nothing is asked about single sentences, as it is of
features: that is in the erasers' favour); it is then fitted again on all prompts that are not for the test.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from editing.interventions.erase import Erasure, fit_leace, mean_difference, project_out
from editing.interventions.masks import with_mask
from editing.removal.edits.choosing import EditSearch
from editing.removal.edits.strengths import Reach
from editing.removal.measurement.cached_runs import PromptRuns, up_to_end
from editing.removal.measurement.evaluation import Method
from editing.removal.prompts.two_class_prompts import TwoClassPrompts
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import NO_LIMITS, Limits, limits_of
from sae_core.sites import Site

AT_ONCE = 256
"""Prompts per forward pass when erasers are fitted."""


class Place(StrEnum):
    """The tokens of a prompt on which an eraser is fitted."""

    ENDS = "last tokens"
    MENTIONS = "mentions"
    ONWARD = "from the first mention on"

    def rows(self, prompts: TwoClassPrompts) -> Bool[Tensor, "batch pos"]:
        """Which tokens they are."""
        position = torch.arange(prompts.tokens.shape[1])
        if self is Place.ENDS:
            return position == prompts.end[:, None]
        mentions = prompts.concept & (position <= prompts.end[:, None])
        if self is Place.MENTIONS:
            return mentions
        return (mentions.cumsum(1) > 0) & (position <= prompts.end[:, None])


def through_origin(site: Site, x: Float[Tensor, "batch d_in"], labels: Bool[Tensor, "batch"]) -> Erasure:
    """The orthogonal projection along the difference of the class means, around zero rather than around the mean."""
    labels = labels.to(x.device)
    difference = x[labels].double().mean(0) - x[~labels].double().mean(0)
    return project_out(site, difference[None].to(x.dtype))


Fit = Callable[[Site, Tensor, Tensor], Erasure]
ERASERS: dict[Method, Fit] = {Method.LEACE: fit_leace, Method.MEANS: mean_difference, Method.ORTHOGONAL: through_origin}


@dataclass(frozen=True, eq=False)
class FittedEraser:
    """The eraser of one method, at one site or at several at once."""

    edits: tuple[Erasure, ...]
    place: Place
    reach: Reach
    """On the check prompts, of the same method fitted without them."""


@torch.no_grad()
def best_erasers(search: EditSearch, site: Site) -> dict[Method, FittedEraser]:
    """Every eraser at one site, fitted where it is best; like the features it leaves outliers alone."""
    check, limits = PromptRuns.of(search.model, site, search.task.check), limits_of([search.dictionaries])
    most = search.config.eraser_prompts
    tuning = fit_erasers(search.model, site, search.task.tuning.first(most), limits)
    fitting = fit_erasers(search.model, site, search.task.fitting.first(most), limits)
    best = {}
    for method in ERASERS:
        reaches = {place: search.reach(check, tuning[method, place]) for place in Place}
        place = min(reaches, key=lambda place: reaches[place].cost())
        best[method] = FittedEraser((fitting[method, place],), place, reaches[place])
    return best


@torch.no_grad()
def fit_erasers(
    model: LanguageModel, site: Site, prompts: TwoClassPrompts, limits: Limits = NO_LIMITS
) -> dict[tuple[Method, Place], Erasure]:
    """Every eraser fitted at every place on the unedited model."""
    parts = _parts(prompts)
    x = [model.record(part.tokens, [site])[site] for part in parts]
    return {
        (method, place): _fitted(fit, site, x, parts, place, limits)
        for method, fit in ERASERS.items()
        for place in Place
    }


def _fitted(
    fit: Fit, site: Site, x: Sequence[Tensor], parts: Sequence[TwoClassPrompts], place: Place, limits: Limits
) -> Erasure:
    """The eraser of the activations at a place of the prompts, each token labelled as its prompt."""
    where = [place.rows(part).to(h.device) for h, part in zip(x, parts, strict=True)]
    rows = torch.cat([h[mask] for h, mask in zip(x, where, strict=True)])
    labels = [part.positive[:, None].expand(mask.shape)[mask.cpu()] for mask, part in zip(where, parts, strict=True)]
    return replace(fit(site, rows, torch.cat(labels)), outlier_norm=limits.get(site, math.inf))


# ---- all layers at once ----------------------------------------------------------------------------


@torch.no_grad()
def best_scrubbing(search: EditSearch, sites: Sequence[Site]) -> dict[Method, FittedEraser]:
    """Every eraser at all residual sites at once, at the place that is best for it (`fit_layer_by_layer`)."""
    limits, most = limits_of([search.dictionaries]), search.config.eraser_prompts
    tuning, fitting = search.task.tuning.first(most), search.task.fitting.first(most)
    best = {}
    for method, fit in ERASERS.items():
        reaches = {
            place: search.reach_together(
                search.task.check, fit_layer_by_layer(search.model, sites, tuning, fit, place, limits)
            )
            for place in Place
        }
        place = min(reaches, key=lambda place: reaches[place].cost())
        edits = fit_layer_by_layer(search.model, sites, fitting, fit, place, limits)
        best[method] = FittedEraser(tuple(edits), place, reaches[place])
    return best


@torch.no_grad()
def fit_layer_by_layer(
    model: LanguageModel,
    sites: Sequence[Site],
    prompts: TwoClassPrompts,
    fit: Fit,
    place: Place = Place.ENDS,
    limits: Limits = NO_LIMITS,
) -> list[Erasure]:
    """One erasure per residual site, from the lowest up, each fitted on the model as the ones below leave it.

    Concept scrubbing (Belrose et al. 2023, section 5). Each block runs once per prompt: the erased activation below
    is kept, and run to the next site.
    """
    erasures: list[Erasure] = []
    parts = _parts(prompts)
    masks = [up_to_end(model, part) for part in parts]
    erased: list[Tensor] = []  # the activation at the site below, after its erasure, part by part
    for site in sorted(sites):
        if erased:
            h = [model.resume(below, erasures[-1].site.layer, [site])[site] for below in erased]
        else:
            h = [model.record(part.tokens, [site])[site] for part in parts]
        erasures.append(_fitted(fit, site, h, parts, place, limits))
        erased = [with_mask(erasures[-1], mask)(part_h) for part_h, mask in zip(h, masks, strict=True)]
    return erasures


def _parts(prompts: TwoClassPrompts) -> list[TwoClassPrompts]:
    """As many prompts at a time as one forward pass takes."""
    return [prompts.rows(rows) for rows in torch.arange(len(prompts)).split(AT_ONCE)]
