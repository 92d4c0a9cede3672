"""The usual ways to erase a concept, at one site or at every layer, fitted on the ends of prompts."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from editing.interventions.erase import Erasure, fit_leace, mean_difference, project_out
from editing.removal.cached_runs import up_to_end
from editing.removal.evaluation import Method
from editing.removal.two_class_prompts import Contrast
from editing.tasks.pairs import at_end
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site, Stream

AT_ONCE = 256
"""Prompts per forward pass."""


def through_origin(site: Site, x: Float[Tensor, "batch d_in"], labels: Bool[Tensor, "batch"]) -> Erasure:
    """The orthogonal projection along the difference of the class means, not around their mean but around zero."""
    labels = labels.to(x.device)
    difference = x[labels].double().mean(0) - x[~labels].double().mean(0)
    return project_out(site, difference[None].to(x.dtype))


def _leace(site: Site, x: Tensor, labels: Tensor) -> Erasure:
    return fit_leace(site, x, labels.long())


def _means(site: Site, x: Tensor, labels: Tensor) -> Erasure:
    return mean_difference(site, x, labels.long())


Fit = Callable[[Site, Tensor, Tensor], Erasure]
ERASERS: dict[Method, Fit] = {Method.LEACE: _leace, Method.MEANS: _means, Method.ORTHOGONAL: through_origin}
TUNED = {
    Method.LEACE: Method.LEACE_TUNED,
    Method.MEANS: Method.MEANS_TUNED,
    Method.ORTHOGONAL: Method.ORTHOGONAL_TUNED,
}
"""The same erasers with a strength."""


@torch.no_grad()
def fit_at(model: LanguageModel, sites: Sequence[Site], prompts: Contrast) -> dict[Site, dict[Method, Erasure]]:
    """Every eraser at every site, each fitted on the unedited model."""
    parts, _ = _parts(model, prompts)
    x: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for part in parts:
        for site, h in model.record(part.tokens, sites).items():
            x[site].append(at_end(h, part.end))
    return {
        site: {name: fit(site, torch.cat(rows), prompts.positive) for name, fit in ERASERS.items()}
        for site, rows in x.items()
    }


@torch.no_grad()
def fit_everywhere(model: LanguageModel, sites: Sequence[Site], prompts: Contrast, fit: Fit) -> list[Erasure]:
    """One erasure per site, in order, each fitted on the model as it is with those before it (concept scrubbing).

    Belrose et al. 2023, section 5: what an erased layer no longer says, the layers above cannot pass on, and
    what they find out anew is erased there. Between residual sites the blocks run once per prompt in all.
    """
    found: list[Erasure] = []
    parts, masks = _parts(model, prompts)
    below: list[Tensor] = []
    for site in sorted(sites):
        if below and site.stream is Stream.RESID_POST and found[-1].site.stream is Stream.RESID_POST:
            h = [model.resume(one, found[-1].site.layer, [site])[site] for one in below]
        else:
            h = [_with(model, found, mask, part.tokens, site) for mask, part in zip(masks, parts, strict=True)]
        ends = torch.cat([at_end(one, part.end) for one, part in zip(h, parts, strict=True)])
        found.append(fit(site, ends, prompts.positive))
        below = [replace(found[-1], mask=mask)(one) for one, mask in zip(h, masks, strict=True)]
    return found


def _parts(model: LanguageModel, prompts: Contrast) -> tuple[list[Contrast], list[Tensor]]:
    """The prompts, as many at a time as one forward pass takes, and the content tokens of each part."""
    parts = [prompts.rows(rows) for rows in torch.arange(len(prompts)).split(AT_ONCE)]
    return parts, [up_to_end(model, part) for part in parts]


def _with(model: LanguageModel, erasers: Sequence[Erasure], mask: Tensor, tokens: Tensor, site: Site) -> Tensor:
    """The activation at `site` with the erasers in place."""
    with model.hooks(*(replace(eraser, mask=mask) for eraser in erasers)):
        return model.record(tokens, [site])[site]
