"""Remove a concept from an activation by an affine map: LEACE, or the difference of the class means."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.patch import where
from sae_core.sites import Site


@dataclass(frozen=True, eq=False)
class Erasure:
    """h -> h - (h - mean) right^T left^T, a projection of rank `k` around `mean`."""

    site: Site
    left: Float[Tensor, "d_in k"]
    right: Float[Tensor, "k d_in"]
    mean: Float[Tensor, "d_in"]
    mask: Bool[Tensor, "batch pos"] | None = None

    def __call__(self, h: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        return where(self.mask, h - (h - self.mean) @ self.right.T @ self.left.T, h)


def fit_leace(site: Site, x: Float[Tensor, "batch d_in"], labels: Int[Tensor, "batch"]) -> Erasure:
    """Least-squares concept erasure (Belrose et al. 2023): of all affine maps after which no linear
    classifier on `x` can beat a constant, the one that moves `x` least."""
    from concept_erasure import LeaceFitter

    fitter = LeaceFitter(x.shape[-1], 1, dtype=torch.float64, device=x.device)
    fitter.update(x.double(), labels.double()[:, None].to(x.device))
    eraser = fitter.eraser
    mean = x.mean(0) if eraser.bias is None else eraser.bias
    return Erasure(site, eraser.proj_left.to(x.dtype), eraser.proj_right.to(x.dtype), mean.to(x.dtype))


def mean_difference(site: Site, x: Float[Tensor, "batch d_in"], labels: Int[Tensor, "batch"]) -> Erasure:
    """The orthogonal projection that takes out the difference of the two class means."""
    one = labels.to(x.device).bool()
    direction = x[one].double().mean(0) - x[~one].double().mean(0)
    unit = (direction / direction.norm()).to(x.dtype)
    return Erasure(site, unit[:, None], unit[None], x.mean(0))
