"""Random edits to compare ablating features with: as large, at the same sites and positions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editing.interventions.compose import Scaled
from editing.interventions.erase import Erasure
from editing.interventions.masks import Mask
from editing.interventions.patch import ablate, resample_ablate
from editing.random_latents import latents_of_like_density
from editing.removal.edits.feature_fit import codes_in_parts
from editing.removal.measurement.cached_runs import TokenRuns, changes
from editing.removal.measurement.evaluation import Method
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import Intervention
from sae_core.outliers import inliers, outlier_norm_of
from sae_core.seeds import generator_for
from sae_core.sites import Site


def random_edits(
    site: Site, dictionary: Dictionary, chosen: list[int], runs: TokenRuns, *, seed: int, draw: int = 0
) -> dict[Method, Intervention]:
    """The ablation of random features of like density, and the projection of as many random directions.

    Densities and means are those of the tokens of `runs`.
    """
    x, k = runs.at(site).x, min(len(chosen), runs.model.d_in(site))
    feature_seed, direction_seed = (generator_for(seed, f"random {kind}", draw) for kind in ("features", "directions"))
    latents = latents_of_like_density(site, density_on(dictionary, site, runs), chosen, generator=feature_seed)
    return {
        Method.RANDOM_FEATURES: ablate(site, dictionary, latents),
        Method.RANDOM_DIRECTIONS: random_projection(
            site, x[runs.mask], k, generator=direction_seed, outlier_norm=outlier_norm_of(dictionary)
        ),
    }


def density_on(dictionary: Dictionary, site: Site, runs: TokenRuns) -> Float[Tensor, "n_latents"]:
    """The share of the masked tokens on which each latent is active."""
    counts = torch.zeros(len(dictionary.directions), dtype=torch.float64)
    for codes in codes_in_parts(dictionary, runs.at(site).x, runs.mask, runs.codes_at_once):
        counts += (codes != 0).flatten(0, 1).sum(0).double().cpu()
    return counts / runs.mask.sum().item()


def random_projection(
    site: Site,
    x: Float[Tensor, "tokens d_in"],
    k: int,
    *,
    generator: torch.Generator,
    outlier_norm: float = math.inf,
) -> Erasure:
    """The projection that takes out `k` random orthonormal directions, around the mean of `x`, outliers left alone."""
    x = x[inliers(x, outlier_norm)]
    rows = torch.linalg.qr(torch.randn(x.shape[-1], k, generator=generator)).Q.T.to(x).contiguous()
    return Erasure(site, rows.T.contiguous(), rows, x.mean(0), outlier_norm=outlier_norm)


def scaled_to_sizes(edits: Sequence[Intervention], sizes: Sequence[float], runs: TokenRuns) -> list[Scaled]:
    """Edits of the residual from a lower layer to a higher one, each scaled so that it moves the tokens by its size.

    Sizes are means of |x' - x| in the run that has all the edits: each is measured on what those below it leave.
    """
    scaled: list[Scaled] = []
    h = runs.at(edits[0].site).x
    for edit, size in zip(edits, sizes, strict=True):
        if scaled:  # up to this site in the run that has the edits below
            h = runs.model.resume(h, scaled[-1].site.layer, [edit.site])[edit.site]
        change = changes(edit, h, runs.mask)
        scaled.append(Scaled(edit, size / max(runs.size(change.norm(dim=-1)), 1e-9)))
        h = h + scaled[-1].strength * change
    return scaled


@dataclass(frozen=True, eq=False)
class Resampled:
    """Features set to what they are on other tokens, drawn for every shape of activation, always the same."""

    site: Site
    dictionary: Dictionary
    latents: tuple[int, ...]
    x: Float[Tensor, "tokens d_in"]
    """Activations of the text that the values are drawn from."""
    seed: int
    mask: Mask = None

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        generator = generator_for(self.seed, "resampled features", *h.shape[:2])
        shape = (h.shape[0], h.shape[1])
        edit = resample_ablate(
            self.site, self.dictionary, self.latents, self.x, shape, generator=generator, mask=self.mask
        )
        return edit(h)
