"""Patching in its plainest form: prompts, whole forward passes, KL by the definition."""

import torch
import torch.nn.functional as F
from tiny import random_tokens

from editing.interventions.patch import FeaturePatch
from editing.ioi.site_experiment import PatchExperiment
from editing.tasks.pairs import PromptPairs, at_end
from sae_core.sites import Site

RESID = Site(1)


def random_pairs(model, n: int = 3) -> PromptPairs:
    """Prompts of different lengths that begin with BOS and differ from position 2 on."""
    clean, corrupted = (random_tokens(model.n_vocab, n, 9, seed=seed) for seed in (1, 2))
    clean[:, 0] = model.bos_id
    corrupted[:, :2] = clean[:, :2]
    answer, foil = torch.arange(2, 2 + n), torch.arange(20, 20 + n)
    return PromptPairs("random", clean, corrupted, answer, foil, foil, torch.tensor([8, 5, 6])[:n])


def full_logits(experiment: PatchExperiment, *edits) -> torch.Tensor:
    """Logits at the answer, from the tokens of the corrupted run."""
    with experiment.model.hooks(*edits):
        return at_end(experiment.model.logits(experiment.pairs.corrupted), experiment.pairs.end)


def patch(experiment: PatchExperiment, dictionary, latents: list[int]) -> FeaturePatch:
    """The latents to their clean codes, at the content positions up to the answer."""
    latents = torch.tensor(latents, dtype=torch.long)
    codes = dictionary.encode(experiment.x)[..., latents]
    return FeaturePatch(experiment.site, dictionary, latents, codes, experiment.mask)


def plain_kl(clean: torch.Tensor, edited: torch.Tensor) -> float:
    """Mean KL(clean || edited) over prompts, by torch's own."""
    p, q = clean.log_softmax(-1), edited.log_softmax(-1)
    return F.kl_div(q, p, log_target=True, reduction="batchmean").item()
