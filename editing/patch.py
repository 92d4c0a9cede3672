"""Change what single latents contribute to an activation, and nothing else.

The sub-rank-one patch of Cunningham et al. 2023 (section on IOI): x' = x + sum_{i in F} (c_i - c_i(x)) f_i.
Where a latent already has its target value the activation is left alone, exactly; what the dictionary
cannot reconstruct stays as it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.dictionaries import Dictionary
from sae_core.errors import UserError
from sae_core.models import Intervention
from sae_core.sites import Site


@dataclass(frozen=True, eq=False)
class FeaturePatch:
    """Move chosen latents to `target`, each along its own direction.

        h  ->  h + sum_{i in latents} (target_i - f_i(h)) d_i

    A zero target ablates, a constant clamps, another run's codes patch. Latents listed together are
    read before any is written; separate patches at one site encode anew, so their order matters.
    """

    site: Site
    dictionary: Dictionary
    latents: Int[Tensor, "k"]
    target: Float[Tensor, "#batch #pos k"]
    mask: Bool[Tensor, "batch pos"] | None = None
    """Positions to edit; all where None."""

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        change = self.target - self.dictionary.encode(h)[..., self.latents]
        return where(self.mask, h + change @ self.dictionary.directions[self.latents], h)


@dataclass(frozen=True, eq=False)
class ErrorPatch:
    """Replace the dictionary's error e = x - x_hat by `target`, leaving the reconstruction alone."""

    site: Site
    dictionary: Dictionary
    target: Float[Tensor, "batch pos d_in"]
    mask: Bool[Tensor, "batch pos"] | None = None

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        return where(self.mask, self.dictionary.decode(self.dictionary.encode(h)) + self.target, h)


@dataclass(frozen=True, eq=False)
class Together:
    """Patches of one site that all read the activation before any is written: h + sum_p (p(h) - h).

    All latents and the error, each to the clean run's, give the clean activation this way only: applied
    one after the other, the second encodes what the first has written.
    """

    patches: tuple[Intervention, ...]

    @property
    def site(self) -> Site:
        (site,) = {patch.site for patch in self.patches}
        return site

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        return h + sum(patch(h) - h for patch in self.patches)


@dataclass(frozen=True, eq=False)
class ActivationPatch:
    """Replace the whole activation by `target`."""

    site: Site
    target: Float[Tensor, "#batch #pos d_in"]
    mask: Bool[Tensor, "batch pos"] | None = None

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        return where(self.mask, self.target.expand_as(h), h)


def ablate(
    site: Site, dictionary: Dictionary, latents: Sequence[int], *, mask: Bool[Tensor, "batch pos"] | None = None
) -> FeaturePatch:
    """The patch that sets latents to zero; where none of them is active it changes nothing at all.

    Raises `UserError` for a latent that the dictionary does not have.
    """
    n_latents, index = len(dictionary.directions), torch.tensor(list(latents), dtype=torch.long)
    for latent in index.tolist():
        if not 0 <= latent < n_latents:
            raise UserError(f"no latent {latent} at {site}: its dictionary has {n_latents}, numbered from 0")
    device = dictionary.directions.device
    return FeaturePatch(site, dictionary, index.to(device), torch.zeros(1, 1, len(index), device=device), mask)


def where(
    mask: Bool[Tensor, "batch pos"] | None, edited: Float[Tensor, "batch pos d"], h: Float[Tensor, "batch pos d"]
) -> Float[Tensor, "batch pos d"]:
    """`edited` at the positions of `mask`, `h` elsewhere."""
    return edited if mask is None else torch.where(mask[..., None], edited, h)
