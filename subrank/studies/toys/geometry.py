"""How the columns W_i of a toy model lie to each other, by the measures of Elhage et al. 2022.

    interference   sum_{j != i} (W^_i . W_j)^2                 W^_i = W_i / |W_i|
    dimensions     D_i = |W_i|^2 / sum_j (W^_i . W_j)^2        of one feature
                   m / |W|_F^2                                 of one of those that are represented, on average

A feature alone in its direction has D = 1, one of an antipodal pair 1/2, of a pentagon 2/5. Together they have no more
dimensions than there are: with F = W W^T, D_i = |W_i|^4 / (W_i F W_i) <= W_i F^-1 W_i (Cauchy and Schwarz), and these
add up to the rank of F.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

REPRESENTED = 0.5
"""Length from which on a feature counts as represented: learnt ones come close to 1, others to 0."""
OPPOSITE = -0.9
"""Cosine below which two features count as antipodal."""


def norms(W: Tensor) -> Tensor:
    """|W_i| of every column of `W` `[m, n]`."""
    return W.norm(dim=0)


def interference(W: Tensor) -> Tensor:
    """sum_{j != i} (W^_i . W_j)^2: 0 for a feature that shares its direction with none."""
    return _overlaps(W).square().fill_diagonal_(0).sum(1)


def dimensions_per_feature(W: Tensor) -> Tensor:
    """D_i, between 0 and 1; 0 for a feature of no length."""
    shared = _overlaps(W).square().sum(1)
    return torch.where(shared > 0, norms(W).square() / shared, 0.0)


def represented(W: Tensor) -> list[int]:
    """The features that have a length."""
    return (norms(W) > REPRESENTED).nonzero().flatten().tolist()


def antipodal_pairs(W: Tensor) -> list[tuple[int, int]]:
    """Represented features that lie opposite each other, each the other's most opposite."""
    unit = F.normalize(W, dim=0) * (norms(W) > REPRESENTED)
    least, where = (unit.T @ unit).min(1)
    return [(i, j) for i, j in enumerate(where.tolist()) if i < j and least[i] < OPPOSITE and int(where[j]) == i]


def _overlaps(W: Tensor) -> Tensor:
    """W^_i . W_j, a row for each i."""
    return F.normalize(W, dim=0).T @ W
