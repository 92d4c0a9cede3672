"""The planted circuit and the tiny models on which circuits are scored."""

import pytest
from planted_circuit import Planted
from tiny_circuit import TinyCircuit

from circuits.scoring.walks import WRITTEN


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.fixture(scope="module")
def written(tiny_models) -> dict[str, TinyCircuit]:
    """With dictionaries of what blocks write."""
    return {kind: TinyCircuit(model, WRITTEN) for kind, model in tiny_models.items()}


@pytest.fixture(scope="module")
def tinies(tiny_models) -> dict[str, TinyCircuit]:
    return {kind: TinyCircuit(model) for kind, model in tiny_models.items()}
