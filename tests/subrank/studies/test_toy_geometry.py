"""Dimensions per feature: the shapes of which they are known, and what they can never exceed."""

import math

import pytest
import torch
from handmade import normal

from subrank.studies.toys.geometry import (
    antipodal_pairs,
    dimensions_per_feature,
    interference,
    norms,
    represented,
)


def polygon(n: int) -> torch.Tensor:
    """n unit columns around a circle."""
    angle = 2 * math.pi * torch.arange(n) / n
    return torch.stack([angle.cos(), angle.sin()])


@pytest.mark.parametrize(
    ("W", "dimensions", "shared"),
    [
        (torch.eye(4), 1, 0),
        (torch.tensor([[1.0, -1.0]]), 1 / 2, 1),
        (polygon(3), 2 / 3, 1 / 2),
        (polygon(5), 2 / 5, 3 / 2),
        (3 * polygon(5), 2 / 5, 9 * 3 / 2),
        (polygon(4), 1 / 2, 1),
    ],
    ids=["orthogonal", "pair", "triangle", "pentagon", "long pentagon", "two pairs"],
)
def test_shapes_have_the_dimensions_that_they_have(W, dimensions, shared):
    n = W.shape[1]
    torch.testing.assert_close(dimensions_per_feature(W), torch.full((n,), float(dimensions)))
    torch.testing.assert_close(interference(W), torch.full((n,), float(shared)), atol=1e-5, rtol=1e-5)


def test_a_rotation_changes_nothing_and_another_shape_does():
    W = torch.block_diag(torch.eye(2), polygon(5), torch.tensor([[1.0, -1.0]]))
    rotated = torch.linalg.qr(normal(5, 5)).Q @ W
    torch.testing.assert_close(dimensions_per_feature(rotated), torch.tensor([1.0] * 2 + [0.4] * 5 + [0.5] * 2))
    assert (dimensions_per_feature(normal(5, 5) @ W) - dimensions_per_feature(W)).abs().max() > 0.1  # control


@pytest.mark.parametrize("seed", range(5))
def test_features_have_no_more_dimensions_than_there_are(seed):
    m, n = 3 + seed, 12
    D = dimensions_per_feature(normal(m, n, seed=seed))
    assert D.min() > 0 and D.max() <= 1 and D.sum() <= m + 1e-4
    assert dimensions_per_feature(torch.eye(m, n)).sum() == m  # which is reached


def test_pairs_are_of_represented_features_and_mutual():
    W = torch.tensor([[1.0, 0.0, -1.0, 0.0, 0.1, 0.9], [0.0, 1.0, 0.0, 0.0, 0.0, -0.9]])
    assert represented(W) == [0, 1, 2, 5] and antipodal_pairs(W) == [(0, 2)]  # the fifth is short, the sixth aslant
    assert antipodal_pairs(torch.eye(4)) == [] and antipodal_pairs(polygon(5)) == []
    assert norms(W).tolist() == pytest.approx([1, 1, 1, 0, 0.1, 0.9 * 2**0.5])
    assert dimensions_per_feature(W)[3] == 0
