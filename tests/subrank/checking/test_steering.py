"""Doses of steering by full forward passes, features at two sites turned together; and faults are seen."""

from dataclasses import replace

import pytest
from checks import wrong
from handmade import random_topk
from planted import unchecked
from tiny import random_tokens

from editing.steering.dose_response import DoseResponse, dose_response
from editing.steering.edits import Mode, Steering
from editing.steering.feature_text import read_features
from editing.steering.held_out import DoseConfig
from sae_core.sites import FeatureId, Site, Stream
from subrank.checking.steering import recomputed

SITES = (Site(0, Stream.MLP_OUT), Site(1))
CONFIG = DoseConfig(contexts=4, n_promoted=2, random_draws=1)


class Turned:
    """Two features that are often active, on random tokens of a tiny model."""

    def __init__(self, model):
        self.model = model
        self.dictionaries = {site: random_topk(32, seed=n) for n, site in enumerate(SITES)}
        self.contexts = random_tokens(model.n_vocab, 12, 10)
        self.contexts[:, 0] = model.bos_id
        recorded = model.record(self.contexts, SITES)
        active = {site: (d.encode(recorded[site]) != 0).sum((0, 1)) for site, d in self.dictionaries.items()}
        features = [FeatureId(site, int(counts.argmax())) for site, counts in active.items()]
        text, self.held = (read_features(model, self.dictionaries, features, part) for part in self.contexts.split(8))
        self.text = text

    def steering(self, mode: Mode) -> Steering:
        return Steering(self.dictionaries, self.text, mode)

    def response(self, mode: Mode) -> DoseResponse:
        strengths = (0.0,) if mode is Mode.OFF else (-1.0, 2.0)
        return dose_response(self.model, self.steering(mode), strengths, self.held, CONFIG)


@pytest.fixture(scope="module")
def turned(tiny_models) -> Turned:
    with unchecked():
        return Turned(tiny_models["neox"])


@pytest.mark.parametrize("mode", Mode)
def test_every_number_agrees_and_a_wrong_one_is_named(turned, mode):
    with unchecked():
        response = turned.response(mode)
    first = response.doses[0]
    altered = replace(first, logit=replace(first.logit, value=first.logit.value * 1.001), edit_size=first.edit_size + 1)
    faulty = replace(response, doses=(altered, *response.doses[1:]))
    numbers = recomputed(turned.model, turned.steering(mode), turned.held, CONFIG, faulty)
    assert wrong(numbers) == [f"{what}, {mode} {first.strength:g}" for what in ("logit change", "edit size")]
    assert len(numbers) >= 4 + 2 * (1 if mode is Mode.OFF else 2)


def test_doses_of_other_dictionaries_disagree(turned):
    with unchecked():
        response = turned.response(Mode.SCALE)
    other = replace(turned.steering(Mode.SCALE), dictionaries={site: random_topk(32, seed=7) for site in SITES})
    named = wrong(recomputed(turned.model, other, turned.held, CONFIG, response))
    assert sum("maximum" in what or "logit change" in what for what in named) == 4
