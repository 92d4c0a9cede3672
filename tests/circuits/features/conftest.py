"""What the tests of this room share: a catalogue of random dictionaries, and a few of its full cards."""

import pytest
from random_cards import full_cards, random_catalogue

from circuits.features.card import Card
from circuits.features.catalogue import Catalogue


@pytest.fixture(scope="session")
def catalogue(tiny_models) -> Catalogue:
    return random_catalogue(tiny_models["neox"])


@pytest.fixture(scope="session")
def full(catalogue) -> list[Card]:
    return full_cards(catalogue)
