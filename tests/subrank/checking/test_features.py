"""The numbers of full cards, by full forward passes; and a fault in each part is seen."""

from dataclasses import replace

import pytest
from checks import agree, wrong
from planted import unchecked
from random_cards import full_cards, random_catalogue

from subrank.checking.features import recomputed


@pytest.fixture(scope="module")
def catalogue(tiny_models):
    with unchecked():
        return random_catalogue(tiny_models["neox"])


@pytest.fixture(scope="module")
def cards(catalogue):
    with unchecked():
        return full_cards(catalogue, per_site=1)


def test_every_number_agrees(catalogue, cards):
    of = agree(recomputed(catalogue, cards, seed=0))
    assert len(of) == 15 and sum("rise of a logit" in what for what in of) == 3


def test_a_wrong_number_is_named(catalogue, cards):
    (word, rise), *others = cards[0].promotes
    altered = replace(cards[0], max=cards[0].max * 1.001, promotes=((word, rise + 0.01), *others))
    named = wrong(recomputed(catalogue, [altered], seed=0))
    assert named == [f"maximum of {altered.feature}", f"largest rise of a logit by {altered.feature}"]


def test_cards_of_other_contexts_disagree(catalogue, cards):
    fewer = replace(catalogue.tally.atlas, contexts=catalogue.training[1:])
    other = replace(catalogue, tally=replace(catalogue.tally, atlas=fewer))
    assert any("density" in what for what in wrong(recomputed(other, cards, seed=0)))
