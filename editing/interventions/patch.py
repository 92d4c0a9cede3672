"""Change what single latents contribute to an activation, and nothing else.

The sub-rank-one patch of Cunningham et al. 2023 (section on IOI): x' = x + sum_{i in F} (c_i - c_i(x)) f_i.
Where a latent already has its target value the activation is left alone, exactly; what the dictionary
cannot reconstruct stays as it was.

Every edit is a value with a site, a mask of positions and a pure function of the activation there.

Order. Edits of one site apply from left to right, and each encodes what the one before has written; the
latents of one edit, and edits held `Together`, are all read before any is written. Edits of several sites
apply in the order in which the model reaches the sites, however they are listed: at each, c_i(x) and x are
those of the run as it has been edited upstream.

Positions. Without a mask an edit touches every position, also those generated after a prompt; a mask
touches the positions it names and no generated one, `Onward(mask)` those and all generated ones; targets
given position by position end with the prompt (`editing/interventions/masks.py` says it in full).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.interventions.masks import Mask, Onward, check_width, ended, reach, reach_of, where, where_inlier
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention
from sae_core.outliers import inliers, outlier_norm_of
from sae_core.sites import FeatureId, Site

Latents = Sequence[int | FeatureId] | Int[Tensor, "k"]


@dataclass(frozen=True, eq=False)
class FeaturePatch:
    """Move chosen latents to `target`, each along its own direction.

        h  ->  h + sum_{i in latents} s_i (target_i - f_i(h)) d_i

    A zero target ablates, a constant clamps, another run's codes patch. The strengths s_i are 1 unless they are given:
    2 pushes a latent as far past its target as it was before it.
    """

    site: Site
    dictionary: Dictionary
    latents: Int[Tensor, "k"]
    target: Float[Tensor, "#batch #pos n"]
    """A value for each of the latents; `UserError` if there are more or fewer."""
    mask: Mask = None
    strengths: Float[Tensor, "*#batch k"] | None = None

    def __post_init__(self):
        _check_latents(self.site, self.dictionary, self.latents)
        if self.strengths is not None and self.strengths.shape[-1] != len(self.latents):
            raise UserError(f"{len(self.latents)} latents of {self.site} cannot take {len(self.strengths)} strengths")
        if self.target.shape[-1] != len(self.latents):
            raise UserError(f"{len(self.latents)} latents of {self.site} cannot take {self.target.shape[-1]} values")

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        if ended(self.target, h):
            return h
        change = self.target - codes(self.site, self.dictionary, h)[..., self.latents]
        change = change if self.strengths is None else self.strengths * change
        return where_inlier(self.dictionary, self.mask, h + change @ self.dictionary.directions[self.latents], h)

    def reach(self, h: Float[Tensor, "batch pos d_in"]) -> Bool[Tensor, "batch pos"]:
        """The positions of this pass that it may write to."""
        return reach(self.mask, h, self.target)


@dataclass(frozen=True, eq=False)
class FeatureScale:
    """Multiply what chosen latents contribute by `factor`: 0 ablates, 1 changes nothing, 2 doubles.

    h  ->  h + sum_{i in latents} (factor_i - 1) f_i(h) d_i
    """

    site: Site
    dictionary: Dictionary
    latents: Int[Tensor, "k"]
    factor: Float[Tensor, "#k"]
    mask: Mask = None

    def __post_init__(self):
        _check_latents(self.site, self.dictionary, self.latents)

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        change = (self.factor - 1) * codes(self.site, self.dictionary, h)[..., self.latents]
        return where_inlier(self.dictionary, self.mask, h + change @ self.dictionary.directions[self.latents], h)


@dataclass(frozen=True, eq=False)
class ErrorPatch:
    """Replace the dictionary's error e = x - x_hat by `target`, leaving the reconstruction alone.

    With the run's own error this is a splice that keeps the error term (`splice_with_error`).
    """

    site: Site
    dictionary: Dictionary
    target: Float[Tensor, "#batch #pos d_in"]
    mask: Mask = None

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        if ended(self.target, h):
            return h
        changed = self.dictionary.decode(codes(self.site, self.dictionary, h)) + self.target
        return where_inlier(self.dictionary, self.mask, changed, h)

    def reach(self, h: Float[Tensor, "batch pos d_in"]) -> Bool[Tensor, "batch pos"]:
        """The positions of this pass that it may write to."""
        return reach(self.mask, h, self.target)


@dataclass(frozen=True, eq=False)
class ActivationPatch:
    """Replace the whole activation by `target`."""

    site: Site
    target: Float[Tensor, "#batch #pos d_in"]
    mask: Mask = None

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        check_width(self.site, self.target.shape[-1], h)
        return h if ended(self.target, h) else where(self.mask, self.target.expand_as(h), h)

    def reach(self, h: Float[Tensor, "batch pos d_in"]) -> Bool[Tensor, "batch pos"]:
        """The positions of this pass that it may write to."""
        return reach(self.mask, h, self.target)


@dataclass(frozen=True, eq=False)
class Together:
    """Patches of one site that all read the activation before any is written: h + sum_p (p(h) - h).

    All latents and the error, each to the clean run's, give the clean activation this way only: applied
    one after the other, the second encodes what the first has written.
    """

    patches: tuple[Intervention, ...]

    def __post_init__(self):
        sites = sorted({patch.site for patch in self.patches})
        if len(sites) != 1:
            raise UserError(f"patches together need one site; got {', '.join(map(str, sites)) or 'no patches'}")

    @property
    def site(self) -> Site:
        return self.patches[0].site

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        return h + sum(patch(h) - h for patch in self.patches)

    def reach(self, h: Float[Tensor, "batch pos d_in"]) -> Bool[Tensor, "batch pos"]:
        """The positions of this pass that any of them may write to."""
        return torch.stack([reach_of(patch, h) for patch in self.patches]).any(0)


# ---- what to set latents to ------------------------------------------------------------------------


def patch_features(
    site: Site, dictionary: Dictionary, latents: Latents, x: Float[Tensor, "batch pos d_in"], *, mask: Mask = None
) -> FeaturePatch:
    """The patch that gives latents the values they have in another run, whose activation at the site is `x`.

    Where `x` is an outlier it writes nothing, as it does where the edited run has one: no latent speaks of it.
    """
    index, limit = _index(site, dictionary, latents), outlier_norm_of(dictionary)
    if limit < math.inf:
        kept = inliers(x, limit)
        mask = kept if mask is None else kept & (mask.mask if isinstance(mask, Onward) else mask).to(kept.device)
    return FeaturePatch(site, dictionary, index, codes(site, dictionary, x)[..., index], mask)


def ablate(site: Site, dictionary: Dictionary, latents: Latents, *, mask: Mask = None) -> FeaturePatch:
    """The patch that sets latents to zero; where none of them is active it changes nothing at all.

    Raises `UserError`, as its siblings do, for a latent that the dictionary does not have or that is of
    another site.
    """
    return clamp(site, dictionary, latents, 0.0, mask=mask)


def clamp(
    site: Site, dictionary: Dictionary, latents: Latents, value: float | Float[Tensor, "..."], *, mask: Mask = None
) -> FeaturePatch:
    """The patch that sets latents to a constant at every position, one for all or one for each."""
    index, directions = _index(site, dictionary, latents), dictionary.directions
    constant = torch.as_tensor(value, dtype=directions.dtype, device=directions.device)
    return FeaturePatch(site, dictionary, index, constant.expand(len(index))[None, None], mask)


def mean_ablate(
    site: Site, dictionary: Dictionary, latents: Latents, x: Float[Tensor, "tokens d_in"], *, mask: Mask = None
) -> FeaturePatch:
    """The patch that sets latents to their mean over the activations `x`, tokens on which they are silent included."""
    return clamp(site, dictionary, latents, _values(site, dictionary, latents, x).mean(0), mask=mask)


def resample_ablate(
    site: Site,
    dictionary: Dictionary,
    latents: Latents,
    x: Float[Tensor, "tokens d_in"],
    shape: tuple[int, int],
    *,
    generator: torch.Generator,
    mask: Mask = None,
) -> FeaturePatch:
    """The patch that gives latents the values they have on other tokens, drawn from the activations `x`.

    Every one of the `shape = (batch, pos)` positions draws a token of its own, from which all latents are
    taken; drawn once, so that the edit stays a pure function. Drawn for (batch, 1), a row's token holds at
    all its positions, generated ones too.
    """
    drawn = torch.randint(len(x), shape, generator=generator).to(x.device)
    target = _values(site, dictionary, latents, x)[drawn]
    return FeaturePatch(site, dictionary, _index(site, dictionary, latents), target, mask)


def scale(
    site: Site, dictionary: Dictionary, latents: Latents, factor: float | Float[Tensor, "..."], *, mask: Mask = None
) -> FeatureScale:
    """The edit that multiplies what latents contribute, by one factor for all or one for each."""
    index, directions = _index(site, dictionary, latents), dictionary.directions
    factors = torch.as_tensor(factor, dtype=directions.dtype, device=directions.device)
    return FeatureScale(site, dictionary, index, factors.expand(len(index)), mask)


def splice_with_error(
    site: Site, dictionary: Dictionary, x: Float[Tensor, "batch pos d_in"], *, mask: Mask = None
) -> ErrorPatch:
    """The reconstruction in place of the activation, with the error that the dictionary makes on `x` added to it.

    On the run that `x` was recorded from, it changes nothing; on one edited upstream, only what the
    dictionary sees of that edit goes on.
    """
    return ErrorPatch(site, dictionary, x - dictionary.decode(codes(site, dictionary, x)), mask)


def codes(
    site: Site, dictionary: Dictionary, h: Float[Tensor, "batch pos d_in"]
) -> Float[Tensor, "batch pos n_latents"]:
    """Latent activations; raises `UserError` if the dictionary was made for activations of another width."""
    check_width(site, dictionary.directions.shape[1], h)
    return dictionary.encode(h)


def _values(site: Site, dictionary: Dictionary, latents: Latents, x: Tensor) -> Float[Tensor, "tokens k"]:
    """What latents are on tokens."""
    if not len(x):
        raise UserError(f"no activations to take the values of latents of {site} from; give more text")
    return codes(site, dictionary, x[None])[0][:, _index(site, dictionary, latents)]


def _index(site: Site, dictionary: Dictionary, latents: Latents) -> Int[Tensor, "k"]:
    """Latents as a tensor beside the dictionary's; raises `UserError` for one that is not there."""
    if isinstance(latents, Tensor):
        index = latents
    else:
        for latent in latents:
            if isinstance(latent, FeatureId) and latent.site != site:
                raise UserError(f"feature {latent} is of {latent.site} and cannot be edited at {site}")
        numbers = [latent.index if isinstance(latent, FeatureId) else latent for latent in latents]
        index = torch.tensor(numbers, dtype=torch.long)
    _check_latents(site, dictionary, index)
    return index.to(dictionary.directions.device)


def _check_latents(site: Site, dictionary: Dictionary, latents: Int[Tensor, "k"]) -> None:
    n_latents = len(dictionary.directions)
    for latent in latents[(latents < 0) | (latents >= n_latents)].tolist():
        raise UserError(f"no latent {latent} at {site}: its dictionary has {n_latents}, numbered from 0")
