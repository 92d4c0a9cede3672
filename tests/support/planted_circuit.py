"""A model whose circuit is known by construction."""

import torch
from handmade import Circuit

from circuits.effects.targets import FeatureTarget
from circuits.features.atlas import Examples
from circuits.scoring.ablations import ResampleAblation
from circuits.scoring.circuit_runs import CircuitRuns
from circuits.scoring.faithfulness import Scale
from sae_core.dictionaries.baselines import Basis
from sae_core.sites import FeatureId, Site

TRUE = {Site(0): (0, 1, 2, 3), Site(1): (4, 5), Site(2): (6, 7)}
"""The members behind feature 8, with a complete dictionary at every layer, in which latent i is feature i."""


WEIGHTS = {0: 0.875, 1: -0.4375, 2: 1.6, 3: 0.000875, 4: 0.875, 5: 2.0, 6: 1.0, 7: -0.25}
"""What one unit of each feature adds to feature 8; feature 2 acts one position later."""


class Planted:
    """Prompts of tokens with much of feature 0 and 2, beside others with little: there is something to explain."""

    def __init__(self):
        self.circuit = Circuit()
        self.model = self.circuit.model
        self.dictionaries = {site: Basis(self.circuit.d, torch.zeros(12)) for site in self.model.sites()}
        strong = self.circuit.by_token[1:, [0, 2]].sum(-1).argsort(descending=True) + 1
        generator = torch.Generator().manual_seed(3)
        self.clean, self.corrupted = (
            tokens[torch.randint(len(tokens), (12, 7), generator=generator)] for tokens in (strong[:20], strong[-20:])
        )
        self.clean[:, 0] = self.corrupted[:, 0] = 0
        self.end = torch.randint(2, 7, (12,), generator=generator)
        self.prompts = Examples(self.clean, self.end, torch.ones(12))
        self.target = FeatureTarget(FeatureId(Site(3), 8), self.dictionaries[Site(3)])
        self.pairs = ResampleAblation.paired(self.model, self.dictionaries, self.prompts, self.corrupted)

    def scale(self, ablation=None, dictionaries=None) -> Scale:
        dictionaries = dictionaries or self.dictionaries
        return Scale(CircuitRuns(self.model, dictionaries, self.target, self.prompts, ablation or self.pairs))

    def difference(self, feature: int) -> float:
        """Mean over prompts of what the feature loses when it is resampled, where feature 8 notices it."""
        at = self.end - int(feature == 2)
        clean, corrupted = (
            self.circuit.activation(feature, tokens)[torch.arange(12), at] for tokens in (self.clean, self.corrupted)
        )
        return (clean - corrupted).mean().item()


def linear_runs() -> CircuitRuns:
    """Feature 8 of the planted circuit, which is linear, so that attribution is exact."""
    circuit = Circuit()
    dictionaries = {site: Basis(circuit.d, torch.zeros(12)) for site in circuit.model.sites()}
    prompts = Examples(circuit.contexts(10), torch.tensor([2, 3, 4, 5, 6, 7] * 2)[:10], torch.ones(10))
    other = ResampleAblation.paired(circuit.model, dictionaries, prompts, circuit.contexts(10, seed=9))
    target = FeatureTarget(FeatureId(Site(3), 8), dictionaries[Site(3)])
    return CircuitRuns(circuit.model, dictionaries, target, prompts, other)
