"""Directions of features: which lie near each other, and the neurons' axes."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.dictionaries.baselines import Rectified
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.sites import FeatureId, Site, Stream

_NEAR = 3


def nearest(
    dictionaries: Mapping[Site, Dictionary], feature: FeatureId, n: int = _NEAR
) -> tuple[tuple[FeatureId, float], ...]:
    """The `n` features with the largest cosine to it at each site of the same and adjacent layers, largest first.

    Adjacent are the next layers that have a dictionary. Cosines are taken within one space: the residual's, in which
    attention and MLP outputs lie too, or that of the MLPs' hidden layers, or of the heads.
    """
    direction = dictionaries[feature.site].directions[feature.index]
    layers = sorted({site.layer for site in dictionaries})
    here = layers.index(feature.site.layer)
    near = []
    for site, dictionary in dictionaries.items():
        if abs(layers.index(site.layer) - here) > 1 or dictionary.directions.shape[1] != len(direction):
            continue
        if _space(site) != _space(feature.site):
            continue  # of equal width by chance: another space
        cosine = dictionary.directions @ direction.to(dictionary.directions)
        if site == feature.site:
            cosine = cosine.index_fill(0, torch.tensor([feature.index], device=cosine.device), -torch.inf)
        best = cosine.topk(min(n, len(cosine) - (site == feature.site)))
        near += [(FeatureId(site, i), v) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return tuple(sorted(near, key=lambda pair: -pair[1]))


def _space(site: Site) -> Stream:
    """Where its directions lie: in the residual, or in a space of its own."""
    return site.stream if site.stream in (Stream.ATTN_Z, Stream.MLP_HIDDEN) else Stream.RESID_POST


def coordinates(directions: Float[Tensor, "n_latents d_in"]) -> Rectified:
    """The neuron basis of the space of `directions`: each coordinate where it is positive, then each where negative.

    The baseline of Cunningham et al. 2023 has the first half; a feature's nearest neuron may point down.
    """
    eye = torch.eye(directions.shape[1]).to(directions)
    return Rectified(torch.cat([eye, -eye]), torch.zeros_like(eye[0]))
