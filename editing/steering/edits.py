"""The edits that turn features up, down or off, the controls beside them, and the tokens that features promote.

Scaling multiplies a feature's activation by s: it acts where the feature is active, and only there. Clamping
sets it to s times its largest activation on a text: it acts at every position. Off sets it to zero. The
controls write changes of the same size, position by position, along other directions: a random one, and the
difference of the mean activations where the features are active and where they are not.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from editing.interventions.add_direction import written
from editing.interventions.masks import Mask
from editing.interventions.patch import FeaturePatch, FeatureScale, clamp, scale
from editing.steering.feature_text import FeatureText
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site


class Mode(StrEnum):
    """What a strength s means."""

    SCALE = "scale"
    """The activation times s: 1 changes nothing, 0 is off."""
    CLAMP = "clamp"
    """s times the largest activation on the text, at every position."""
    OFF = "off"
    """Zero; the one strength is 0."""


DEFAULT_STRENGTHS = {
    Mode.SCALE: (-4.0, 0.0, 1.0, 2.0, 4.0, 8.0),
    Mode.CLAMP: (-1.0, 0.0, 0.5, 1.0, 2.0),
    Mode.OFF: (0.0,),
}


@dataclass(frozen=True, eq=False)
class Redirected:
    """Another edit's change c, as long as it is, but along a unit direction u: h + |c| sign(c . d) u.

    d is the unit direction along which the edit itself goes: turned down, a feature turns its control down.
    """

    edit: FeaturePatch | FeatureScale
    direction: Float[Tensor, "d_in"]
    """u"""
    edit_direction: Float[Tensor, "d_in"]
    """d"""

    @property
    def site(self) -> Site:
        return self.edit.site

    @property
    def mask(self) -> Mask:
        return self.edit.mask

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        change = self.edit(h) - h
        amount = change.norm(dim=-1) * (change @ self.edit_direction).sign()
        return h + amount[..., None] * self.direction


@dataclass(frozen=True, eq=False)
class Steering:
    """A way to steer: the features of a text, and what a strength does to them.

    Raises `UserError` for a feature that is never active on the text: nothing says how strong it would be.
    """

    dictionaries: Mapping[Site, Dictionary]
    text: FeatureText
    mode: Mode

    def __post_init__(self) -> None:
        for feature, maximum in zip(self.text.features, self.text.maximum.tolist(), strict=True):
            if maximum == 0:
                raise UserError(
                    f"{feature} is never active on {self.text.n_tokens} tokens of this text; "
                    "choose another feature, or a --text on which it is"
                )

    def edits(self, strength: float, mask: Mask = None) -> list[FeaturePatch | FeatureScale]:
        """One edit per site, so that latents of one site are read together."""
        edits: list[FeaturePatch | FeatureScale] = []
        for site, latents, maximum in self.text.by_site():
            if self.mode is Mode.SCALE:
                edits.append(scale(site, self.dictionaries[site], latents, strength, mask=mask))
            else:
                value = maximum * (strength if self.mode is Mode.CLAMP else 0.0)
                edits.append(clamp(site, self.dictionaries[site], latents, value, mask=mask))
        return edits

    def controls(
        self, strength: float, directions: Mapping[Site, Float[Tensor, "_"]], mask: Mask = None
    ) -> list[Redirected]:
        """The same edits, the change of each along another unit direction."""
        return [
            Redirected(
                edit,
                directions[edit.site],
                normalize(edit.dictionary.directions[edit.latents].sum(0), dim=0),
            )
            for edit in self.edits(strength, mask)
        ]


def random_directions(
    model: LanguageModel, sites: Iterable[Site], *, generator: torch.Generator
) -> dict[Site, Float[Tensor, "_"]]:
    """A unit vector for each site, drawn uniformly."""
    drawn = {site: torch.randn(model.d_in(site), generator=generator) for site in sites}
    return {site: normalize(vector, dim=0).to(model.device) for site, vector in drawn.items()}


@torch.no_grad()
def promoted(
    model: LanguageModel, dictionaries: Mapping[Site, Dictionary], text: FeatureText, n: int = 5
) -> Int[Tensor, "n"]:
    """The tokens whose logits the features raise most by themselves.

    Each d_j is added, at its mean activation, to the mean final residual, and read through the final norm; what
    is equal for all tokens does not count, as no probability notices it.
    """
    change = torch.zeros_like(text.mean_final)
    for feature, strength in zip(text.features, text.mean_active.tolist(), strict=True):
        direction = dictionaries[feature.site].directions[feature.index]
        change += strength * written(model, feature.site, direction[None])[0]
    moved = model.unembed(text.mean_final + change) - model.unembed(text.mean_final)
    return moved.topk(min(n, len(moved))).indices
