"""Edits made of other edits: more or less of one, and one that leaves the first token alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.interventions.masks import Mask, reach, with_mask
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import Site


@dataclass(frozen=True, eq=False)
class Scaled:
    """Another intervention's change, multiplied: h + strength * (edit(h) - h). At strength 0 it is exactly h."""

    edit: Intervention
    strength: float
    mask: Mask = None

    @property
    def site(self) -> Site:
        return self.edit.site

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        edit = self.edit if self.mask is None else with_mask(self.edit, self.mask)
        return h + self.strength * (edit(h) - h)


def unscaled(edit: Intervention) -> tuple[Intervention, float]:
    """The edit whose change is multiplied, and what all multiply it by together; of a plain edit itself and 1.

    A `Scaled` with a mask of its own is taken for a plain edit.
    """
    strength = 1.0
    while isinstance(edit, Scaled) and edit.mask is None:
        edit, strength = edit.edit, strength * edit.strength
    return edit, strength


@dataclass(frozen=True, eq=False)
class Spared:
    """Another intervention, except where the activation lies within `radius` of `anchor`, that of a BOS.

    An edit that is saved does not see tokens, and with a KV cache not even positions; the activation of BOS is
    nearly the same wherever it stands, and tells.
    """

    edit: Intervention
    anchor: Float[Tensor, "d_in"]
    radius: float
    mask: Mask = None

    @property
    def site(self) -> Site:
        return self.edit.site

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        apart = (h - self.anchor).norm(dim=-1) > self.radius
        return torch.where((apart & reach(self.mask, h))[..., None], self.edit(h), h)


ALIKE = 0.01
"""Activations within this share of the anchor's norm are the anchor's, in other arithmetic."""


@torch.no_grad()
def spare_bos(
    model: LanguageModel, edits: list[Intervention], text: Int[Tensor, "contexts pos"] | None = None
) -> list[Intervention]:
    """The edits as they were measured, without masks: BOS keeps its activation. Unchanged where there is no BOS.

    The anchor is the activation of a BOS that no text precedes. A BOS in the middle of a text is a little off it,
    by what the text before it adds; the radius is half the distance of the content token of `text` that is nearest.
    Without text only the first token of all is spared, and so it is in a model that treats one in the middle like
    any other token: there the two are as far apart as BOS and content. Special tokens other than BOS are edited.
    """
    if model.bos_id is None:
        return edits
    sites = {edit.site for edit in edits}
    anchors = {site: h[0, 0] for site, h in model.record(torch.tensor([[model.bos_id]]), sites).items()}
    nearest = {site: 2 * ALIKE * anchor.norm() for site, anchor in anchors.items()}
    if text is not None and (content := model.content(text).to(model.device)).any():
        recorded = model.record(text, sites)
        nearest = {site: (recorded[site][content] - anchors[site]).norm(dim=-1).min() for site in sites}
    return [Spared(edit, anchors[edit.site], nearest[edit.site].item() / 2) for edit in edits]
