"""What ablating features is compared with at the same site and positions: erasers and random edits; all layers at once.

Erasers (LEACE, and two projections along the difference of the class means) are fitted on the last tokens of prompts.
Random edits are scaled to the size of the features' edit. At all layers at once every method edits each residual site.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from editing.interventions.compose import Scaled
from editing.interventions.erase import Erasure, fit_leace, mean_difference, project_out
from editing.interventions.masks import with_mask
from editing.interventions.patch import ablate
from editing.random_latents import latents_of_like_density
from editing.removal.cached_runs import PromptRuns, TokenRuns, ablated_latents, changes, up_to_end
from editing.removal.class_scores import auroc_distance, scores_of
from editing.removal.evaluation import Method
from editing.removal.feature_search import codes_in_parts
from editing.removal.site_and_strength import EditSearch, affordable_strength, best_strength
from editing.removal.two_class_prompts import TwoClassPrompts
from editing.tasks.pairs import at_end
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.outliers import NO_LIMITS, Limits, inliers, limits_of, outlier_norm_of
from sae_core.seeds import generator_for
from sae_core.sites import Site

AT_ONCE = 256
"""Prompts per forward pass when erasers are fitted."""
FITTED_AT_ALL_LAYERS = 1024
"""Prompts on which the erasers of all layers at once are fitted."""
COMMON_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of the features' strengths, from which one is chosen for all layers at once."""

# ---- erasers ---------------------------------------------------------------------------------------


def through_origin(site: Site, x: Float[Tensor, "batch d_in"], labels: Bool[Tensor, "batch"]) -> Erasure:
    """The orthogonal projection along the difference of the class means, around zero rather than around the mean."""
    labels = labels.to(x.device)
    difference = x[labels].double().mean(0) - x[~labels].double().mean(0)
    return project_out(site, difference[None].to(x.dtype))


Fit = Callable[[Site, Tensor, Tensor], Erasure]
ERASERS: dict[Method, Fit] = {Method.LEACE: fit_leace, Method.MEANS: mean_difference, Method.ORTHOGONAL: through_origin}
TUNED = {
    Method.LEACE: Method.LEACE_TUNED,
    Method.MEANS: Method.MEANS_TUNED,
    Method.ORTHOGONAL: Method.ORTHOGONAL_TUNED,
}
"""The same erasers with a strength."""


@torch.no_grad()
def fit_erasers(
    model: LanguageModel, sites: Sequence[Site], prompts: TwoClassPrompts, limits: Limits = NO_LIMITS
) -> dict[Site, dict[Method, Erasure]]:
    """Every eraser at every site, each fitted on the unedited model; like the features it leaves outliers alone."""
    x: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for part in _parts(prompts):
        for site, h in model.record(part.tokens, sites).items():
            x[site].append(at_end(h, part.end))
    return {
        site: {
            method: replace(fit(site, torch.cat(rows), prompts.positive), outlier_norm=limits.get(site, math.inf))
            for method, fit in ERASERS.items()
        }
        for site, rows in x.items()
    }


@torch.no_grad()
def fit_layer_by_layer(
    model: LanguageModel, sites: Sequence[Site], prompts: TwoClassPrompts, fit: Fit, limits: Limits = NO_LIMITS
) -> list[Erasure]:
    """One erasure per residual site, from the lowest up, each fitted on the model as the ones below leave it.

    Concept scrubbing (Belrose et al. 2023, section 5). Each block runs once per prompt: the erased activation below
    is kept, and run to the next site.
    """
    erasures: list[Erasure] = []
    parts = _parts(prompts)
    masks = [up_to_end(model, part) for part in parts]
    erased: list[Tensor] = []  # the activation at the site below, after its erasure, part by part
    for site in sorted(sites):
        if erased:
            h = [model.resume(below, erasures[-1].site.layer, [site])[site] for below in erased]
        else:
            h = [model.record(part.tokens, [site])[site] for part in parts]
        ends = torch.cat([at_end(part_h, part.end) for part_h, part in zip(h, parts, strict=True)])
        erasures.append(replace(fit(site, ends, prompts.positive), outlier_norm=limits.get(site, math.inf)))
        erased = [with_mask(erasures[-1], mask)(part_h) for part_h, mask in zip(h, masks, strict=True)]
    return erasures


def _parts(prompts: TwoClassPrompts) -> list[TwoClassPrompts]:
    """As many prompts at a time as one forward pass takes."""
    return [prompts.rows(rows) for rows in torch.arange(len(prompts)).split(AT_ONCE)]


def tuned_erasers(search: EditSearch, site: Site, erasers: dict[Method, Erasure]) -> dict[Method, Scaled]:
    """The erasers, each with the strength that is best on the check prompts for one fitted on the selection prompts.

    On the prompts that an eraser was fitted on, the classes meet at strength 1 by construction.
    """
    runs = PromptRuns.of(search.model, site, search.task.check)
    on_selection = fit_erasers(search.model, [site], search.task.tuning, limits_of([search.dictionaries]))[site]
    budget = search.config.budget
    return {
        TUNED[method]: Scaled(eraser, best_strength(runs, on_selection[method], search.text, budget)[0])
        for method, eraser in erasers.items()
    }


# ---- random edits ----------------------------------------------------------------------------------


def random_edits(
    site: Site, dictionary: Dictionary, chosen: list[int], runs: TokenRuns, *, seed: int, draw: int = 0
) -> dict[Method, Intervention]:
    """The ablation of random features of like density, and the projection of as many random directions.

    Densities and means are those of the tokens of `runs`.
    """
    x, k = runs.at(site)[0], min(len(chosen), runs.model.d_in(site))
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
    for codes in codes_in_parts(dictionary, runs.at(site)[0], runs.mask, runs.codes_at_once):
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
    h = runs.at(edits[0].site)[0]
    for edit, size in zip(edits, sizes, strict=True):
        if scaled:  # up to this site in the run that has the edits below
            h = runs.model.resume(h, scaled[-1].site.layer, [edit.site])[edit.site]
        change = changes(edit, h, runs.mask)
        scaled.append(Scaled(edit, size / max(runs.size(change.norm(dim=-1)), 1e-9)))
        h = h + scaled[-1].strength * change
    return scaled


# ---- all layers at once ----------------------------------------------------------------------------


@torch.no_grad()
def edits_at_all_layers(
    search: EditSearch, edits: dict[Site, Scaled], reported: TokenRuns
) -> dict[Method, list[Intervention]]:
    """Per method, one edit for each residual site of `edits`, from the lowest to the highest.

    Features are those of each site, at one common share of their strengths there: the share that leaves the classes
    least apart on the selection prompts, within the budget. Erasers are there if the task's classes are a concept.
    Random edits are as large at every site as the features' edit there, each in the run that has all of its kind, on
    the text of `reported`.
    """
    sites, seed = sorted(edits), search.config.seed
    alone = [edits[site] for site in sites]
    share = _best_share(search.model, search.task.selection, alone)
    share, _ = affordable_strength(alone, share, search.text, search.config.budget)
    features = [Scaled(edit.edit, round(share * edit.strength, 4)) for edit in alone]
    methods: dict[Method, list[Intervention]] = {Method.FEATURES: [*features]}
    if search.task.concept:
        fitting = search.task.fitting.first(FITTED_AT_ALL_LAYERS)
        limits = limits_of([search.dictionaries])
        methods |= {
            method: [*fit_layer_by_layer(search.model, sites, fitting, fit, limits)] for method, fit in ERASERS.items()
        }
    sizes = reported.edited(features).sizes
    random = [
        random_edits(site, search.dictionaries[site], ablated_latents(edits[site]), search.text.runs, seed=seed)
        for site in sites
    ]
    for method in random[0]:
        methods[method] = [*scaled_to_sizes([at_site[method] for at_site in random], sizes, reported)]
    return methods


def _best_share(model: LanguageModel, prompts: TwoClassPrompts, edits: list[Scaled]) -> float:
    """The common share of all strengths that leaves the classes least apart."""
    runs = TokenRuns(model, prompts.tokens, up_to_end(model, prompts))

    def scores(share: float) -> Tensor:
        final = runs.edited([Scaled(edit, share) for edit in edits]).final
        return scores_of(prompts, model.unembed(at_end(final, prompts.end))).cpu()

    distances = auroc_distance(prompts, torch.stack([scores(share) for share in COMMON_SHARES]))
    return COMMON_SHARES[int(distances.argmin())]
