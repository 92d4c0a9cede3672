"""Dictionaries on toy models whose features are known: what is sparse is found, what is dense is not."""

import pytest
import torch
import torch.nn.functional as F
from handmade import normal
from planted import unchecked

from sae_core.evaluation.similarity import expected_max_cosine
from subrank.studies.toys.dictionaries import HiddenActivations, latents_active, recovery

PLANTED = F.normalize(normal(5, 15, seed=4), dim=0)
"""Fifteen features in five dimensions."""


def found_in(W: torch.Tensor, density: float, steps: int, seed: int = 0):
    with unchecked():
        return recovery(HiddenActivations(W, density, seed, batches=8), steps)


def test_activations_are_those_of_the_rows_and_depend_on_their_number_alone():
    stream = HiddenActivations(PLANTED, 0.01, 3)
    first, again = ([batch for each in stream.block(number) for batch in each.values()] for number in (0, 0))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and len(first) == 32
    assert not torch.equal(first[0], next(iter(stream.block(1)))[stream.sites[0]])
    largest = (F.normalize(first[0], dim=-1) @ PLANTED).amax(-1)
    assert (largest > 0.999).float().mean() > 0.85 and first[0].norm(dim=-1).min() > 0  # mostly one feature to a row


@pytest.mark.parametrize(("density", "k"), [(0.001, 1), (0.1, 2), (1.0, 15)])
def test_as_many_latents_are_active_as_features(density, k):
    stream = HiddenActivations(PLANTED, density, 0)
    assert latents_active(stream) == k
    (rows,) = (x for x in [next(iter(stream.block(0)))[stream.sites[0]]])
    assert rows.shape == (512, 5)


def test_untrained_dictionaries_are_as_good_as_random_ones():
    """Control for the test below; and chance is what the formula says."""
    result = found_in(PLANTED, 0.01, steps=1)
    assert abs(result.cosine.value - result.chance.value) < 0.1 and result.found < 0.4
    assert result.chance.value == pytest.approx(expected_max_cosine(15, 5), abs=0.02)
    assert result.chance.low < result.chance.value < result.chance.high and result.n_represented == 15


@pytest.mark.slow
def test_sparse_features_are_found_and_dense_ones_are_not(training_seed):
    sparse, dense = (found_in(PLANTED, density, 200, training_seed) for density in (0.01, 1.0))
    assert sparse.cosine.low > sparse.chance.high and sparse.found > sparse.chance_found + 0.3
    assert dense.found < 0.3 and dense.cosine.low < dense.chance.high
