"""Planted features are recognised by their predicates, and features without one are not."""

import pytest
import torch
from characters import Characters, Lookup
from handmade import normal
from hypothesis import given
from hypothesis import strategies as st

from circuits.features.predicates import predicates
from circuits.features.survey import Survey
from circuits.features.verification import best_thresholds, verify
from sae_core.sites import FeatureId, Site

TEXTS = ["f", "(", " x", ")", ").", " y", "\n"]


@pytest.fixture(scope="module")
def contexts():
    chance = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, len(TEXTS) + 1, (24, 20), generator=chance)
    tokens[:, 0] = 0
    return tokens


def test_a_planted_feature_is_recognised_and_the_control_is_not(contexts):
    model = Characters(TEXTS)
    bracket, noise = torch.zeros(2, model.n_vocab)
    bracket[[TEXTS.index(")") + 1, TEXTS.index(").") + 1]] = torch.tensor([3.0, 2.0])
    bracket[TEXTS.index("f") + 1] = 0.5  # weak elsewhere: the threshold leaves it out
    table = torch.stack([bracket, noise], 1)
    features = [FeatureId(Site(0), 0), FeatureId(Site(0), 1)]
    (claim,) = verify(Survey(model, {Site(0): Lookup(table)}), features, contexts)
    assert (claim.feature, claim.predicate, claim.f1) == (features[0], "has )", 1.0)
    assert claim.control < 0.6
    named = verify(Survey(model, {Site(0): Lookup(table)}), features[:1], contexts, {features[0]: "next: )"})
    assert named[0].predicate == "next: )" and named[0].f1 < 0.6


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
def test_the_best_threshold_is_what_trying_all_of_them_finds(tokens):
    f = torch.tensor([float(value) for value, _ in tokens])
    truth = torch.tensor([true for _, true in tokens])

    def at(threshold: float) -> float:
        active = f > threshold
        return 2 * int((active & truth).sum()) / max(1, int(active.sum()) + int(truth.sum()))

    f1, threshold = best_thresholds(f, truth[None], truth[None].sum(1))
    assert float(f1) == pytest.approx(max(map(at, (0.0, 0.5, 1.5, 2.5, 3.5))))
    assert float(threshold) >= 0 and at(float(threshold)) == pytest.approx(float(f1))


def test_predicates_are_chosen_on_one_half_and_scored_on_the_other(contexts):
    """A feature that is a predicate in every second context only scores nothing in the others."""
    model = Characters(TEXTS)
    truth = predicates(model, contexts)["inside ("].float()

    class Half(Lookup):
        place = 0

        def encode(self, x):
            rows = torch.arange(self.place, self.place + len(x))
            self.place += len(x)
            silent = normal(len(x), 20).relu() * (1 - truth[rows])
            return torch.where(rows[:, None] % 2 == 0, truth[rows], silent)[..., None]

    (claim,) = verify(Survey(model, {Site(0): Half(torch.zeros(model.n_vocab, 1))}), [FeatureId(Site(0), 0)], contexts)
    assert claim.predicate == "inside (" and claim.f1 == 0.0
