"""Chosen features on a text: where they are active, how strongly, and how activations differ where they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site


@dataclass(frozen=True, eq=False)
class FeatureText:
    """Chosen features on a text."""

    features: tuple[FeatureId, ...]
    """Sorted."""
    contexts: Int[Tensor, "contexts pos"]
    f: Float[Tensor, "contexts pos k"]
    """Their activations at content positions; zero elsewhere."""
    difference: dict[Site, Float[Tensor, "_"]]
    """The unit vector from the mean activation where no feature of the site is active to where one is, `[d_in]`."""
    mean_final: Float[Tensor, "d_model"]
    """Mean residual after the last block, over content positions."""
    n_tokens: int
    """Content positions."""

    @property
    def maximum(self) -> Float[Tensor, "k"]:
        """The largest activation of each: the unit of clamping."""
        return self.f.flatten(0, 1).amax(0)

    @property
    def mean_active(self) -> Float[Tensor, "k"]:
        """The mean activation of each where it is active."""
        return self.f.sum((0, 1)) / (self.f != 0).sum((0, 1)).clamp_min(1)

    @property
    def density(self) -> Float[Tensor, "k"]:
        """Share of content tokens on which each is active."""
        return (self.f != 0).sum((0, 1)) / self.n_tokens

    @property
    def active(self) -> Bool[Tensor, "contexts pos"]:
        """Where any of them is active."""
        return (self.f != 0).any(-1)

    def only(self, feature: FeatureId) -> "FeatureText":
        """One of the features, alone; without the difference of means, which is of all of a site together."""
        column = self.features.index(feature)
        return replace(self, features=(feature,), f=self.f[..., column : column + 1], difference={})

    def by_site(self) -> list[tuple[Site, list[int], Float[Tensor, "_"]]]:
        """For each site: the latents there and their largest activations."""
        columns = groupby(range(len(self.features)), lambda column: self.features[column].site)
        groups = [(site, list(group)) for site, group in columns]
        return [(site, [self.features[i].index for i in group], self.maximum[group]) for site, group in groups]


def check_known_features(dictionaries: Mapping[Site, Dictionary], features: Sequence[FeatureId]) -> None:
    """Raise `UserError` unless every feature is in a dictionary of the set, and none is given twice."""
    if not features or len({*features}) < len(features):
        raise UserError("give at least one feature, and none twice")
    for feature in features:
        if feature.site not in dictionaries:
            sites = ", ".join(map(str, dictionaries))
            raise UserError(f"no feature {feature}: this set has no dictionary for {feature.site}, but for {sites}")
        n = len(dictionaries[feature.site].directions)
        if feature.index >= n:
            raise UserError(f"no feature {feature}: the dictionary for {feature.site} has {n}, numbered from 0")


@torch.no_grad()
def read_features(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    features: Sequence[FeatureId],
    contexts: Int[Tensor, "contexts pos"],
    *,
    at_once: int = 16,
) -> FeatureText:
    """Chosen features on a text, in one pass over it, `at_once` contexts per forward pass.

    Raises `UserError` for a feature that is not in `dictionaries`.
    """
    # All means are over content positions, from running sums in float64. At each site positions fall into two
    # classes, no chosen feature active (row 0) and any active (row 1): sums [2, d_in], counts [2, 1]; the
    # difference of means is row 1 less row 0, normalised.
    check_known_features(dictionaries, features)
    features, last = tuple(sorted(features)), model.sites()[-1]
    latents = {site: [f.index for f in group] for site, group in groupby(features, lambda feature: feature.site)}
    sums = {site: torch.zeros(2, model.d_in(site), dtype=torch.float64) for site in latents}
    counts = {site: torch.zeros(2, 1, dtype=torch.float64) for site in latents}
    final, n_tokens, f = torch.zeros(model.d_model, dtype=torch.float64), 0, []
    for chunk in contexts.split(model.at_once(at_once)):
        content = model.content(chunk).to(model.device)
        recorded = model.record(chunk, {*latents, last})
        n_tokens += int(content.sum())
        final += recorded[last][content].double().sum(0).cpu()
        codes = []
        for site, indices in latents.items():
            f_site = dictionaries[site].encode(recorded[site])[..., indices] * content[..., None]
            x, active = recorded[site][content].double(), (f_site[content] != 0).any(-1)
            sums[site] += torch.stack([x[~active].sum(0), x[active].sum(0)]).cpu()
            counts[site] += torch.stack([(~active).sum(), active.sum()])[:, None].cpu()
            codes.append(f_site.cpu())
        f.append(torch.cat(codes, -1))
    means = {site: (sums[site] / counts[site].clamp_min(1)).float().to(model.device) for site in latents}
    difference = {site: normalize(mean[1] - mean[0], dim=0) for site, mean in means.items()}
    mean_final = (final / n_tokens).float().to(model.device)
    return FeatureText(features, contexts, torch.cat(f), difference, mean_final, n_tokens)
