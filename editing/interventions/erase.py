"""Remove a subspace from an activation, or a concept: LEACE, or the differences of the classes' means.

The maps that erase a concept make the means of its classes equal on what they are fitted on, so that no
linear classifier can tell the classes apart there; they differ in what else they move.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.interventions.masks import Mask, check_width, where_inlier
from sae_core.errors import UserError
from sae_core.sites import Site

_NOISE = 1e-10
"""Correlations with a concept, and differences in units of the activations, that are rounding."""


@dataclass(frozen=True, eq=False)
class Erasure:
    """h -> h - (h - mean) right^T left^T, a projection of rank `k` around `mean`."""

    site: Site
    left: Float[Tensor, "d_in k"]
    right: Float[Tensor, "k d_in"]
    mean: Float[Tensor, "d_in"]
    mask: Mask = None
    outlier_norm: float = math.inf
    """Tokens of a larger norm are left alone (`sae_core/outliers.py`)."""

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        check_width(self.site, len(self.left), h)
        return where_inlier(self, self.mask, h - (h - self.mean) @ self.right.T @ self.left.T, h)


def project_out(
    site: Site,
    directions: Float[Tensor, "k d_in"],
    *,
    mean: Float[Tensor, "d_in"] | None = None,
    mask: Mask = None,
) -> Erasure:
    """The edit that takes out all that lies in the span of `directions`: h - (h - mean) Q^T Q.

    The rows of Q are an orthonormal basis of the span, found in float64; directions may be of any length,
    depend on each other, or be zero. Without `mean`, h is projected through the origin.
    """
    longest = directions.norm(dim=-1).max().item() if len(directions) else 0.0
    basis = _span(directions, max(directions.shape) * torch.finfo(directions.dtype).eps * longest)
    return Erasure(site, basis.T, basis, torch.zeros(directions.shape[-1]).to(basis) if mean is None else mean, mask)


Labels = Int[Tensor, "labels"] | Bool[Tensor, "labels"]


def fit_leace(site: Site, x: Float[Tensor, "batch d_in"], labels: Labels) -> Erasure:
    """Least-squares concept erasure (Belrose et al. 2023): of all affine maps after which no linear
    classifier on `x` can beat a constant, the one that moves `x` least.

        x - W^+ Q Q^T W (x - mean),  W = Cov(x)^(-1/2),  Q an orthonormal basis of the columns of W Cov(x, labels)

    Labels are the classes' numbers, two or more. By the package concept-erasure in float64, as it comes but
    for one thing: its cut-off of 0.01 for the singular values of W Cov(x, labels) would let a class stay that
    is rare or weakly marked. Its estimate of Cov(x) is a shrunk one, made for fewer examples than these
    matrices ask for; on many the map is the same.
    """
    from concept_erasure import LeaceFitter

    classes = _one_hot(x, labels)[:, 1:]  # the first is what is left over
    fitter = LeaceFitter(x.shape[1], classes.shape[1], dtype=torch.float64, device=x.device, svd_tol=_NOISE)
    eraser = fitter.update(x.double(), classes).eraser
    used = eraser.proj_right.any(-1)
    left, right = eraser.proj_left[:, used], eraser.proj_right[used]
    return Erasure(site, left.to(x.dtype), right.to(x.dtype), fitter.mean_x.to(x.dtype))


def orthogonal(site: Site, x: Float[Tensor, "batch d_in"], labels: Labels) -> Erasure:
    """The orthogonal projection, around the mean, that takes out all differences of the classes' means."""
    wide, classes = x.double(), _one_hot(x, labels)
    means = classes.T @ wide / classes.sum(0)[:, None]
    basis = _span(means[1:] - means[0], _NOISE * wide.norm(dim=-1).mean().item()).to(x.dtype)
    return Erasure(site, basis.T, basis, wide.mean(0).to(x.dtype))


def mean_difference(site: Site, x: Float[Tensor, "batch d_in"], labels: Labels) -> Erasure:
    """The orthogonal projection that takes out the difference of two classes' means: `orthogonal` for two."""
    erasure, n_classes = orthogonal(site, x, labels), len(labels.unique())
    if n_classes != 2:
        raise UserError(f"a mean difference needs two classes; got {n_classes}: use the orthogonal projection")
    return erasure


def _one_hot(x: Float[Tensor, "batch d_in"], labels: Labels) -> Float[Tensor, "batch classes"]:
    """Which class each row is of; raises `UserError` unless there are two or more, and a label for every row."""
    if len(labels) != len(x):
        raise UserError(f"{len(labels)} labels for {len(x)} activations; give one for each")
    classes, number = labels.to(x.device).unique(return_inverse=True)
    if len(classes) < 2:
        raise UserError("erasing a concept needs examples of two classes or more; all labels are equal")
    return F.one_hot(number).double()


def _span(directions: Float[Tensor, "k d_in"], least: float) -> Float[Tensor, "rank d_in"]:
    """An orthonormal basis of what the directions span; what is no larger than `least` is rounding."""
    _, size, rows = torch.linalg.svd(directions.double(), full_matrices=False)
    return rows[size > least].to(directions.dtype)
