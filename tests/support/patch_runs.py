"""A clean and a corrupted run of a model, to be patched into each other."""

import torch
from handmade import random_topk
from tiny import random_tokens

from editing.interventions.patch import FeaturePatch
from sae_core.sites import Site, Stream

RESID, MLP = Site(1), Site(1, Stream.MLP_OUT)


class Runs:
    """A clean and a corrupted run of one of the tiny models, with a random dictionary."""

    def __init__(self, model):
        self.model, self.sae = model, random_topk(model.d_model)
        self.clean = random_tokens(model.n_vocab, 3, 9, seed=1)
        self.corrupted = random_tokens(model.n_vocab, 3, 9, seed=2)
        self.x = model.record(self.clean, [RESID, MLP])
        self.x_bar = model.record(self.corrupted, [RESID, MLP])

    def edited(self, *edits):
        with self.model.hooks(*edits):
            return self.model.logits(self.corrupted)

    def every_latent(self, site: Site, dictionary) -> FeaturePatch:
        """All latents to their clean codes."""
        latents = torch.arange(len(dictionary.directions))
        return FeaturePatch(site, dictionary, latents, dictionary.encode(self.x[site]))

    def error(self, site: Site, x) -> torch.Tensor:
        return x[site] - self.sae.decode(self.sae.encode(x[site]))
