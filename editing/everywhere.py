"""The same edits at every layer at once: each layer's features, and erasers fitted one after the other."""

import torch

from editing.candidates import affordable_strength
from editing.capability import Capability
from editing.contrast import Contrast
from editing.erasers import ERASERS, fit_everywhere
from editing.ground import Elsewhere, Runs, up_to_end
from editing.rivals import equal_random
from editing.scaled import Scaled
from editing.tasks.pairs import at_end
from sae_core.dictionaries import Dictionary
from sae_core.models import Intervention, LanguageModel
from sae_core.sites import Site

FITTED = 1024
"""Prompts on which the erasers are fitted."""
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


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
) -> dict[str, list[Intervention]]:
    """Per method, one edit for each residual site, from the lowest to the highest.

    The features are each site's own, at one share of the strengths that they have there alone: the one at which
    the classes are told apart least on the selection prompts, within the budget. The random edits are as large
    at every site as the features' edit there.
    """
    sites = sorted(edits)
    alone = [edits[site] for site in sites]
    share = affordable_strength(alone, _meeting_share(model, task.selection, alone), choosing, budget)
    methods: dict[str, list[Intervention]] = {
        "features": [Scaled(one.edit, round(share * one.strength, 4)) for one in alone]
    }
    fitting = task.fitting.first(FITTED)
    methods |= {name: [*fit_everywhere(model, sites, fitting, fit)] for name, fit in ERASERS.items()}
    randoms: dict[str, list[Intervention]] = {"random features": [], "random directions": []}
    for site, edit in zip(sites, methods["features"], strict=True):
        size, latents = tested.runs.edited([edit])[2], edits[site].edit.latents.tolist()
        drawn = equal_random(site, dictionaries[site], latents, size, choosing, tested, 1, seed)
        for name, found in drawn.items():
            randoms[name] += found
    return methods | randoms


def _meeting_share(model: LanguageModel, prompts: Contrast, edits: list[Scaled]) -> float:
    """The share of all strengths at which the classes are told apart least."""
    runs = Runs(model, prompts.tokens, up_to_end(model, prompts))

    def apart(share: float) -> float:
        final, _, _ = runs.edited([Scaled(edit, share) for edit in edits])
        return prompts.told_apart(prompts.score(model.unembed(at_end(final, prompts.end))).cpu())

    return min(SHARES, key=apart)
