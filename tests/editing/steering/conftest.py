"""What the tests of steering share: a linear model in which the effect of any edit can be written down."""

from contextlib import contextmanager

import pytest
import torch
from handmade import HandModel, normal

from editing.steering.dose_response import DoseResponse, dose_response
from editing.steering.edits import Mode, Steering
from editing.steering.feature_text import read_features
from editing.steering.held_out import DoseConfig
from sae_core.dictionaries.baselines import Rectified, random_basis
from sae_core.sites import FeatureId, Site

SITE = Site(0)
FEATURE = FeatureId(SITE, 0)
STRENGTHS = (-2.0, 0.0, 1.0, 2.0, 4.0)


class Linear(HandModel):
    """Logits are E_v . h, and the blocks add nothing: what an edit does to every logit can be written down."""

    def __init__(self, n_vocab: int = 600, d_model: int = 64):
        nothing = torch.zeros(d_model, d_model)
        embedding = 0.4 * normal(n_vocab, d_model, seed=1)
        embedding[0] = 0
        super().__init__(embedding, [(nothing, nothing)] * 2)
        self.edits = ()

    @contextmanager
    def hooks(self, *edits):
        self.edits = edits
        yield
        self.edits = ()

    def _run(self, h, first, sites):
        kept = {}
        for layer in range(first, self.n_layers):
            for edit in self.edits:
                h = edit(h) if edit.site == Site(layer) else h
            kept[Site(layer)] = h
        return {site: kept[site] for site in sites}


class Toy:
    """A linear model with 64 orthogonal features that are only ever added, at its first site."""

    def __init__(self):
        self.model = Linear()
        directions = random_basis(64, generator=torch.Generator().manual_seed(2)).directions
        self.dictionaries = {SITE: Rectified(directions, torch.zeros(64))}
        tokens = torch.randint(1, 600, (60, 12), generator=torch.Generator().manual_seed(3))
        tokens[:, 0] = 0
        self.text, self.held_out = (
            read_features(self.model, self.dictionaries, [FEATURE], part) for part in tokens.split(30)
        )

    def respond(self, mode: Mode, strengths=STRENGTHS, **config) -> DoseResponse:
        steering, config = Steering(self.dictionaries, self.text, mode), DoseConfig(n_promoted=2, **config)
        return dose_response(self.model, steering, strengths, self.held_out, config)


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy()
