"""How sparse effects are: the two anchors, and a planted model in which a latent moves one logit."""

import math
from contextlib import contextmanager

import torch
from handmade import HandModel, normal

from sae_core.dictionaries.baselines import neurons
from sae_core.sites import Site
from subrank.studies.metrics.effects import ABLATED, CHANNEL, DIRECTION, ablation_sparsity, effect_sparsity
from subrank.studies.metrics.reading import Reading

T, V = 8, 64


def test_one_logit_is_one_of_all_and_normal_effects_are_two_over_pi():
    single = torch.zeros(2, T, V)
    single[0, 3, 5], single[1, 0, 0] = 2.0, -0.1
    torch.testing.assert_close(effect_sparsity(single), torch.full((2,), 1 / (T * V), dtype=torch.float64))
    assert abs(effect_sparsity(normal(16, 2048)) - 2 / math.pi) < 0.01
    assert effect_sparsity(torch.zeros(T, V)).isnan()  # nothing moved: no share of anything


def test_neither_size_nor_what_all_logits_of_a_token_share_shows():
    change = normal(T, V)
    torch.testing.assert_close(effect_sparsity(change), effect_sparsity(3 * change + normal(T, 1, seed=1)))


class Identity(HandModel):
    """Logits are the residual: one layer that adds nothing, one coordinate for each token."""

    def __init__(self):
        super().__init__(torch.eye(V), [(torch.zeros(V, V), torch.zeros(V, V))])
        self.edits = ()

    @contextmanager
    def hooks(self, *edits):
        self.edits = edits
        yield
        self.edits = ()

    def record(self, tokens, sites):
        h = super().record(tokens, sites)[Site(0)]
        for edit in self.edits:
            h = edit(h)
        return {Site(0): h}

    def unembed(self, h):
        return h


def test_a_latent_that_moves_one_logit_is_told_from_a_random_direction():
    model = Identity()
    tokens = torch.randint(1, V, (12, 20), generator=torch.Generator().manual_seed(0))
    reading = Reading(tokens, model.content(tokens), model.record(tokens, [Site(0)])[Site(0)])
    latents = tokens[:8, 0].unique()
    chance = torch.Generator().manual_seed(1)
    sparsity = ablation_sparsity(model, Site(0), neurons(V), reading, latents, chance)
    ahead = 10  # half of a context
    torch.testing.assert_close(sparsity[ABLATED], torch.full((len(latents),), 1 / (ahead * V), dtype=torch.float64))
    assert sparsity[DIRECTION].mean() > 20 * sparsity[ABLATED].mean()  # control: 2 / pi of a token
    assert len(sparsity[CHANNEL]) == len(latents) and model.edits == ()
