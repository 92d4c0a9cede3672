"""Steer: add a direction of the activation space, which need be no dictionary's."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from editing.interventions.masks import Mask, check_width, ended, reach, where
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site, Stream


@dataclass(frozen=True, eq=False)
class AddDirection:
    """h  ->  h + strength * direction, one for all positions or one for each.

    Given position by position, directions end with the prompt: what is generated later is left alone.
    """

    site: Site
    direction: Float[Tensor, "d_in"] | Float[Tensor, "#batch #pos d_in"]
    strength: float | Float[Tensor, ""] = 1.0
    mask: Mask = None

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        check_width(self.site, self.direction.shape[-1], h)
        if self.direction.ndim == 3 and ended(self.direction, h):
            return h
        return where(self.mask, h + self.strength * self.direction, h)

    def reach(self, h: Float[Tensor, "batch pos d_in"]) -> Bool[Tensor, "batch pos"]:
        """The positions of this pass that it may write to."""
        return reach(self.mask, h, self.direction if self.direction.ndim == 3 else None)


@torch.no_grad()
def written(model: LanguageModel, site: Site, directions: Float[Tensor, "k d_in"]) -> Float[Tensor, "k d_model"]:
    """What directions at a site add to the residual: themselves, or d W from the MLP's hidden layer and from heads."""
    mixed = {Stream.MLP_HIDDEN: Stream.MLP_OUT, Stream.ATTN_Z: Stream.ATTN_OUT}
    if site.stream not in mixed:
        return directions
    out = Site(site.layer, mixed[site.stream])
    tokens = torch.zeros(len(directions), 1, dtype=torch.long)
    with model.hooks(AddDirection(site, directions[:, None])):
        moved = model.record(tokens, [out])[out]
    return (moved - model.record(tokens[:1], [out])[out])[:, 0]
