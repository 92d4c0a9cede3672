"""Effects by whole forward passes, beside which those of `circuits.effects` are held."""

import torch
from handmade import random_topk
from tiny import random_tokens

from circuits.effects.ablation_effects import (
    Causes,
    Effects,
    ablation_effects,
)
from circuits.effects.targets import FeatureTarget
from circuits.features.atlas import Examples
from editing.interventions.patch import FeaturePatch, ablate
from sae_core.sites import FeatureId, Site

LATENTS = 24


def question(model, dictionaries, source: Site, target: FeatureId, examples: Examples, **how) -> Causes:
    target = FeatureTarget(target, dictionaries[target.site])
    return Causes.of(model, dictionaries[source], source, target, examples, **how)


def effects_of(model, dictionaries, source: Site, target: FeatureId, examples: Examples, **how) -> Effects:
    return ablation_effects(question(model, dictionaries, source, target, examples, **how))


def some_examples(tokens: torch.Tensor, *, seed: int = 0) -> Examples:
    """Every context with a random end after the BOS."""
    end = torch.randint(1, tokens.shape[1], (len(tokens),), generator=torch.Generator().manual_seed(seed))
    return Examples(tokens, end, torch.ones(len(tokens)))


class Setting:
    """A tiny random model with random dictionaries, and 18 examples of the loudest latent of the last layer.

    `read`, `effect` and `naive` run the whole model with hooks, each ablation on its own.
    """

    def __init__(self, model, source: Site):
        self.model, self.source = model, source
        self.dictionaries = {source: random_topk(32, LATENTS, 3), Site(2): random_topk(32, LATENTS, 12, seed=9)}
        self.dictionaries[source].b_enc[:2] = -1e3  # two latents that are never active
        tokens = random_tokens(model.n_vocab, 18, 9, seed=3)
        tokens[:, 0] = tokens[::3, 4] = model.bos_id
        self.examples = some_examples(tokens)
        f = self.dictionaries[Site(2)].encode(model.record(tokens, [Site(2)])[Site(2)])
        loudest = f[torch.arange(18), self.examples.end].sum(0).argmax()
        self.target = FeatureId(Site(2), int(loudest))

    def causes(self, **how) -> Causes:
        return question(self.model, self.dictionaries, self.source, self.target, self.examples, **how)

    def effects(self, *, at_once: int | None = None) -> Effects:
        return ablation_effects(self.causes(), at_once=at_once)

    def read(self, *edits) -> torch.Tensor:
        """The target's activation at the examples' ends in full forwards over whole contexts."""
        with self.model.hooks(*edits):
            h = self.model.record(self.examples.tokens, [Site(2)])[Site(2)]
        return self.dictionaries[Site(2)].encode(h)[torch.arange(18), self.examples.end, self.target.index].double()

    def naive(self) -> torch.Tensor:
        """Ablate every latent in turn at all content positions."""
        content, clean = self.model.content(self.examples.tokens), self.read().sum()
        ablated = [
            self.read(ablate(self.source, self.dictionaries[self.source], [j], mask=content)).sum()
            for j in range(LATENTS)
        ]
        return (clean - torch.stack(ablated)) / clean

    def active(self) -> torch.Tensor:
        """Examples on which each latent is active on a content token up to the target's position."""
        x, tokens = self.model.record(self.examples.tokens, [self.source])[self.source], self.examples.tokens
        f = self.dictionaries[self.source].encode(x)
        n_active = torch.zeros(LATENTS, dtype=torch.long)
        for row, end in enumerate(self.examples.end.tolist()):
            for j in range(LATENTS):
                n_active[j] += any(
                    f[row, pos, j] != 0 and int(tokens[row, pos]) not in self.model.special_ids
                    for pos in range(end + 1)
                )
        return n_active

    def effect(self, edit) -> float:
        clean = self.read()
        return float((clean - self.read(edit)).sum() / clean.sum())

    def patch(self, latent: int, target: torch.Tensor, mask: torch.Tensor) -> FeaturePatch:
        index = torch.tensor([latent])
        return FeaturePatch(self.source, self.dictionaries[self.source], index, target, mask)

    @property
    def content(self) -> torch.Tensor:
        return self.model.content(self.examples.tokens)
