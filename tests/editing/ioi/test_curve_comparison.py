"""A dictionary against a baseline: where it is better, where the curves cross, and what chance alone does."""

import pytest
import torch

from editing.ioi.curve import Trace
from editing.ioi.curve_comparison import compare_curves
from editing.ioi.feature_sets import PatchReadout
from editing.metrics import resampled


def noisy_trace(kl: list[float], sizes: list[float], n: int = 40, noise: float = 0.0) -> Trace:
    chance = torch.randn(len(kl), n, generator=torch.Generator().manual_seed(0)).double()
    zeros = torch.zeros(len(kl), n).double()
    kl_values = torch.tensor(kl).double()[:, None] + noise * chance[:1]
    size_values = torch.tensor(sizes).double()[:, None].expand(-1, n)
    return Trace(tuple(range(len(kl))), PatchReadout(kl_values + zeros, zeros, zeros, size_values))


def test_where_a_dictionary_is_better_and_where_the_curves_cross():
    sae, pca = noisy_trace([4, 2, 1, 1], [0, 1, 2, 3], noise=5), noisy_trace([4, 3, 1.5, 0], [0, 2, 4, 6], noise=5)
    comparison = compare_curves(("d", sae), ("PCA", pca), resampled(range(40), 0), [0.5, 1.0, 4.0, 6.0])
    assert [kl.value for kl in comparison.difference] == pytest.approx((0, -1, -0.5, 1))
    assert comparison.better == [1, 2] and comparison.worse == [3] and comparison.crossing == 3
    # at size 1 one feature against none, at 4 all three against two, at 6 all three of each
    assert [kl.value for kl in comparison.size_difference] == pytest.approx((0, 2 - 4, 1 - 1.5, 1 - 0))
    assert comparison.better_sizes == [1, 4] and comparison.worse_sizes == [6]


def test_a_baseline_that_never_gets_ahead_has_no_crossing():
    sae, pca = noisy_trace([4, 2, 1], [0, 1, 2]), noisy_trace([4, 3, 2], [0, 1, 2])
    comparison = compare_curves(("d", sae), ("PCA", pca), resampled(range(40), 0), [1.0])
    assert comparison.crossing is None and comparison.worse == []


def test_pairs_that_differ_by_chance_alone_are_not_called_better():
    sae, pca = noisy_trace([1.0], [0]), noisy_trace([1.0], [0])
    sae.readout.kl.add_(0.1 * torch.randn(40, generator=torch.Generator().manual_seed(4)).double())
    comparison = compare_curves(("d", sae), ("PCA", pca), resampled(range(40), 0), [1.0])
    assert comparison.better == comparison.worse == []
