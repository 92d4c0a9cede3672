"""Whose directions are explained: those of dictionaries, and beside them those of decompositions that need no training.

All are latents that are never negative, drawn at random. Of a direction that has no sign the side is taken to which its
activations are skewed, around their mean: that on which something stands out (f = relu(s (x - mean) . d)).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.catalogue import Catalogue, read_catalogue
from circuits.features.survey import Survey
from editing.ioi.baselines import BASELINE_NAMES, Baseline, baselines
from sae_core.data.activations import harvest
from sae_core.dictionaries.baselines import Rectified, Unmixing
from sae_core.formats.hook_names import parse_site
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import inliers, limits_of
from sae_core.progress import OnProgress, silent
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site
from subrank.experiments.features import drawn
from subrank.saes import Saes
from subrank.settings.studies import ExplainSettings

FITTED_ON = 10_000
"""Tokens on which decompositions are fitted, about."""
Texts = tuple[Int[Tensor, "contexts pos"], Int[Tensor, "held pos"]]
"""Contexts on which explanations are made, and those on which they are scored."""


@dataclass(frozen=True, eq=False)
class Method:
    """Some directions of one origin, and what is known of them on a text."""

    name: str
    catalogue: Catalogue
    features: tuple[FeatureId, ...]
    is_set: bool = False
    """Whether they are features of a dictionary that was trained."""


@dataclass(frozen=True, eq=False)
class OneSided(Rectified):
    """Directions that are only ever added, and on outliers not at all, as those of dictionaries are."""

    outlier_norm: float = math.inf

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        return self.codes(x) * inliers(x, self.outlier_norm)[..., None]

    codes = Rectified.encode


def set_methods(
    sets: Mapping[str, Saes],
    model: LanguageModel,
    texts: Texts,
    settings: ExplainSettings,
    on_progress: OnProgress = silent,
) -> list[Method]:
    """Features of each set: those that are chosen, or some drawn of those that are active several times."""
    methods = []
    for name, saes in sets.items():
        sites = sites_of({name: saes}, settings)
        catalogue = read_catalogue(saes.survey(model), *texts, seed=settings.seed, on_progress=on_progress)
        chosen = saes.ids(settings.only) if settings.only else drawn(catalogue, sites, settings.features * len(sites))
        methods.append(Method(name, catalogue, tuple(sorted(chosen)), is_set=True))
    return methods


def beside_methods(
    sets: Mapping[str, Saes],
    model: LanguageModel,
    texts: Texts,
    settings: ExplainSettings,
    on_progress: OnProgress = silent,
) -> list[Method]:
    """As many directions of each kind at the sites of the sets, read together: they share a dictionary."""
    kinds, limits = list(map(Baseline, settings.beside)), limits_of(saes.dictionaries for saes in sets.values())
    few, together = texts[0][: max(1, FITTED_ON // texts[0].shape[1])], {}
    for site in sites_of(sets, settings) if kinds else ():
        limit, x = limits.get(site, math.inf), harvest(model, few, (site,))[site]
        basis = one_sided(x[inliers(x, limit)], kinds, settings.features, generator_for(settings.seed, "beside", site))
        together[site] = replace(basis, outlier_norm=limit)
    if not together:
        return []
    survey = Survey(model, together)
    catalogue = read_catalogue(survey, *texts, seed=settings.seed, on_progress=on_progress)
    alive = {FeatureId(site, index) for site in together for index in catalogue.alive(site)}
    methods = []
    for place, kind in enumerate(kinds):
        latents = [
            FeatureId(site, place * n + i)
            for site, basis in together.items()
            for n in [len(basis.directions) // len(kinds)]
            for i in range(n)
        ]
        methods.append(
            Method(BASELINE_NAMES[kind], catalogue, tuple(feature for feature in latents if feature in alive))
        )
    return methods


def sites_of(sets: Mapping[str, Saes], settings: ExplainSettings) -> list[Site]:
    """The sites of the sets, or of what is chosen; raises `UserError` where a set does not have that."""
    if settings.only:
        return sorted({feature.site for saes in sets.values() for feature in saes.ids(settings.only)})
    if not settings.site:
        return sorted({site for saes in sets.values() for site in saes.dictionaries})
    for saes in sets.values():
        saes.at(settings.site)
    return [parse_site(settings.site)]


def one_sided(
    x: Float[Tensor, "tokens d_in"], kinds: Sequence[Baseline], n: int, generator: torch.Generator
) -> OneSided:
    """`n` directions of each kind, or as many as there are dimensions, kind after kind."""
    mean, rows = x.mean(0), []
    for basis in baselines(kinds, x, seed=int(torch.randint(2**31, (), generator=generator))).values():
        reading = basis.filters.T if isinstance(basis, Unmixing) else basis.directions
        order = torch.randperm(len(reading), generator=generator)[: min(n, len(mean))]
        chosen = F.normalize(reading[order.to(reading.device)], dim=-1)
        skewed = ((x - mean) @ chosen.T).double().pow(3).mean(0) >= 0
        rows.append(torch.where(skewed[:, None], chosen, -chosen))
    return OneSided(torch.cat(rows), mean)
