"""Patching in its plainest form: prompts, whole forward passes, KL by the definition."""

import pytest
import torch
import torch.nn.functional as F
from tiny import random_tokens

from editing.interventions.patch import ActivationPatch, FeaturePatch
from editing.ioi.site_experiment import PatchExperiment
from editing.tasks.pairs import PromptPairs, at_end
from sae_core.sites import Site, Stream

RESID = Site(1)
SITES = [
    RESID,
    Site(0, Stream.MLP_OUT),
    Site(1, Stream.MLP_HIDDEN),
    Site(0, Stream.ATTN_OUT),
    Site(1, Stream.ATTN_OUT),
    Site(1, Stream.ATTN_Z),
]
EVERY_SITE = pytest.mark.parametrize("site", SITES, ids=str)


def random_pairs(model, n: int = 3) -> PromptPairs:
    """Prompts of different lengths that begin with BOS and differ from position 2 on."""
    clean, corrupted = (random_tokens(model.n_vocab, n, 9, seed=seed) for seed in (1, 2))
    clean[:, 0] = model.bos_id
    corrupted[:, :2] = clean[:, :2]
    answer, foil = torch.arange(2, 2 + n), torch.arange(20, 20 + n)
    return PromptPairs("random", clean, corrupted, answer, foil, foil, torch.tensor([8, 5, 6])[:n], torch.arange(n))


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


def reference_readout(experiment: PatchExperiment, dictionary, latents: list[int]) -> torch.Tensor:
    """KL, logit difference, probability and edit size of every prompt, `[batch 4]`, each from its formula.

    One prompt at a time without its padding, each with two full forwards of the model and no hook but the patch.
    """
    model, pairs, rows = experiment.model, experiment.pairs, []
    for row, end in enumerate(pairs.end.tolist()):
        clean, corrupted = pairs.clean[row : row + 1, : end + 1], pairs.corrupted[row : row + 1, : end + 1]
        x, x_bar = (model.record(tokens, [experiment.site])[experiment.site] for tokens in (clean, corrupted))
        edited = torch.zeros_like(x)
        for pos in range(end + 1):
            if experiment.mask[row, pos]:
                c, c_bar = dictionary.encode(x[0, pos]), dictionary.encode(x_bar[0, pos])
                edited[0, pos] = sum(((c[i] - c_bar[i]) * dictionary.directions[i] for i in latents), torch.zeros(1))
        q = model.logits(clean)[0, -1]
        with model.hooks(ActivationPatch(experiment.site, x_bar + edited)):
            p = model.logits(corrupted)[0, -1]
        answer, foil = pairs.answer[row], pairs.foil[row]
        kl = F.kl_div(p.log_softmax(-1), q.log_softmax(-1), log_target=True, reduction="sum")
        size = edited.norm(dim=-1).sum() / experiment.mask[row].sum()
        rows.append(torch.stack([kl, p[answer] - p[foil], p.softmax(-1)[answer], size]))
    return torch.stack(rows)
