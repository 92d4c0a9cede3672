"""The same edits at every layer at once: each layer's features, and erasers fitted one after the other."""

import torch
from torch import Tensor

from editing.interventions.compose import Scaled
from editing.removal.cached_runs import Elsewhere, Runs, up_to_end
from editing.removal.capability import Capability
from editing.removal.erasers import ERASERS, fit_everywhere
from editing.removal.evaluation import Method
from editing.removal.feature_search import affordable_strength
from editing.removal.random_controls import at_size, random_edits
from editing.removal.two_class_prompts import Contrast
from editing.tasks.pairs import at_end
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import Site

FITTED = 1024
"""Prompts on which the erasers are fitted."""
COMMON_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@torch.no_grad()
def at_all_layers(
    model: LanguageModel,
    task: Capability,
    edits: dict[Site, Scaled],
    dictionaries: dict[Site, Dictionary],
    choosing: Elsewhere,
    tested: Elsewhere,
    budget: float,
    seed: int,
) -> dict[Method, list[Intervention]]:
    """Per method, one edit for each residual site, from the lowest to the highest.

    The features are each site's own, at one share of the strengths that they have there alone: the one at which
    the classes are told apart least on the selection prompts, within the budget. Erasers are there if the task's
    classes are a concept. The random edits are as large at every site as the features' edit there, each in the run
    that has all of its kind.
    """
    sites = sorted(edits)
    alone = [edits[site] for site in sites]
    share, _ = affordable_strength(alone, _meeting_share(model, task.selection, alone), choosing, budget)
    features = [Scaled(one.edit, round(share * one.strength, 4)) for one in alone]
    methods: dict[Method, list[Intervention]] = {Method.FEATURES: [*features]}
    if task.concept:
        fitting = task.fitting.first(FITTED)
        methods |= {name: [*fit_everywhere(model, sites, fitting, fit)] for name, fit in ERASERS.items()}
    sizes = tested.runs.edited(features).sizes
    drawn = [random_edits(s, dictionaries[s], edits[s].edit.latents.tolist(), choosing, seed=seed) for s in sites]
    for method in drawn[0]:
        methods[method] = [*at_size([own[method] for own in drawn], sizes, tested.runs)]
    return methods


def _meeting_share(model: LanguageModel, prompts: Contrast, edits: list[Scaled]) -> float:
    """The share of all strengths at which the classes are told apart least."""
    runs = Runs(model, prompts.tokens, up_to_end(model, prompts))

    def scores(share: float) -> Tensor:
        final = runs.edited([Scaled(edit, share) for edit in edits]).final
        return prompts.score(model.unembed(at_end(final, prompts.end))).cpu()

    apart = prompts.told_apart(torch.stack([scores(share) for share in COMMON_SHARES]))
    return COMMON_SHARES[int(apart.argmin())]
