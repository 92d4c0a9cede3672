"""Edits made of other edits: more or less of one, and one that leaves the first token alone."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from editing.positions import Mask, edited
from sae_core.models import Intervention, LanguageModel
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
        edit = self.edit if self.mask is None else replace(self.edit, mask=self.mask)
        return h + self.strength * (edit(h) - h)


@dataclass(frozen=True, eq=False)
class Spared:
    """Another intervention, except where the activation is `anchor`: that of BOS, which no text precedes.

    An edit that is saved does not see tokens, and with a KV cache not even positions; the activation of the first
    token is always the same, and tells.
    """

    edit: Intervention
    anchor: Float[Tensor, "d_in"]
    mask: Mask = None

    @property
    def site(self) -> Site:
        return self.edit.site

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        apart = (h - self.anchor).norm(dim=-1) > ALIKE * self.anchor.norm()
        return torch.where((apart & edited(self.mask, h))[..., None], self.edit(h), h)


ALIKE = 0.01
"""Activations within this share of the anchor's norm are the anchor's, in other arithmetic."""


@torch.no_grad()
def spare_bos(model: LanguageModel, edits: list[Intervention]) -> list[Intervention]:
    """The edits as they were measured, without masks: BOS keeps its activation. Unchanged where there is no BOS."""
    if model.bos_id is None:
        return edits
    recorded = model.record(torch.tensor([[model.bos_id]]), {edit.site for edit in edits})
    return [Spared(edit, recorded[edit.site][0, 0]) for edit in edits]
