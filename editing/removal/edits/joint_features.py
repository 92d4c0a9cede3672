"""Features of all layers ablated at once, their strengths fitted together."""

import torch

from editing.interventions.patch import FeaturePatch, ablate
from editing.removal.edits.choosing import Choice, EditSearch
from editing.removal.edits.feature_fit import AtSites, fit_strengths, with_strengths
from editing.removal.edits.strengths import Reach
from sae_core.sites import Site


@torch.no_grad()
def joint_features(search: EditSearch, choices: dict[Site, Choice]) -> tuple[list[FeaturePatch], Reach]:
    """The ablation of each site's features, lowest site first, with strengths that suit each other; and how far it
    goes.

    They start from each site's strengths there, divided by the number of sites, and are fitted on the prompts on which
    the features were chosen. The strength of the whole is the one that is best on selection and check prompts.
    """
    edits = [choices[site].edit for site in sorted(choices)]
    units = [ablate(edit.site, edit.dictionary, [latent]) for edit in edits for latent in edit.latents.tolist()]
    start = torch.cat([edit.strengths.flatten().cpu() for edit in edits if edit.strengths is not None]) / len(edits)
    prompts = search.task.choosing.first(2 * search.config.fit_prompts)
    problem = AtSites(search.model, prompts, edits)
    strengths = fit_strengths(
        problem, search.text.second_order([search.text.final_under([unit]) for unit in units]), start
    )
    fitted = with_strengths(edits, strengths.to(edits[0].dictionary.directions))
    return fitted, search.reach_together(search.task.choosing, fitted, search.config.budget)
