"""Dictionaries that need no training: PCA, ICA, neurons, a random basis."""

import logging
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal directions around a centre: f = (x - mean) D^T, x_hat = f D + mean.

    Complete (as many directions as dimensions), the reconstruction is exact.
    """

    directions: Float[Tensor, "n_latents d_in"]
    mean: Float[Tensor, "d_in"]

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        return (x - self.mean) @ self.directions.T

    def decode(self, f: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch d_in"]:
        return f @ self.directions + self.mean


@dataclass(frozen=True, eq=False)
class Rectified:
    """Directions that are only ever added: f = relu((x - mean) D^T), x_hat = f D + mean."""

    directions: Float[Tensor, "n_latents d_in"]
    mean: Float[Tensor, "d_in"]

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        return ((x - self.mean) @ self.directions.T).relu()

    def decode(self, f: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch d_in"]:
        return f @ self.directions + self.mean


@dataclass(frozen=True, eq=False)
class Unmixing:
    """Directions that need not be orthogonal, and the filters that read them: f = (x - mean) W, x_hat = f D + mean.

    Complete, the filters are the inverse of the directions and the reconstruction is exact.
    """

    directions: Float[Tensor, "n_latents d_in"]
    filters: Float[Tensor, "d_in n_latents"]
    mean: Float[Tensor, "d_in"]

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        return (x - self.mean) @ self.filters

    def decode(self, f: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch d_in"]:
        return f @ self.directions + self.mean


def pca(x: Float[Tensor, "batch d_in"], n_components: int | None = None) -> Basis:
    """Principal components of `x`, the strongest first; all of them by default.

    Covariance and its eigenvectors are computed in float64.
    """
    wide = x.double()
    mean = wide.mean(0)
    vectors = torch.linalg.eigh((wide - mean).T @ (wide - mean))[1].flip(-1).T
    return Basis(vectors[:n_components].to(x.dtype).contiguous(), mean.to(x.dtype))


def nonnegative_pca(x: Float[Tensor, "batch d_in"], n_components: int | None = None) -> Rectified:
    """Every principal component and, next to it, its negative: twice as many latents, none of them negative.

    As relu(a) - relu(-a) = a, the reconstruction is that of `pca`.
    """
    basis = pca(x, n_components)
    both = torch.stack([basis.directions, -basis.directions], dim=1)
    return Rectified(both.flatten(0, 1), basis.mean)


def ica(
    x: Float[Tensor, "batch d_in"],
    n_components: int | None = None,
    *,
    generator: torch.Generator,
    iterations: int = 200,
) -> Unmixing:
    """Independent components of `x` by scikit-learn's FastICA (Hyvarinen and Oja 2000), fitted in float64.

    Directions are the columns of the mixing matrix at unit length, the length being left to the codes;
    their sign and order mean nothing. A fit that has not settled is used as it is, and logged. Raises
    `UserError` where scikit-learn is missing, or `x` has too few rows to tell directions apart.
    """
    try:
        from sklearn.decomposition import FastICA
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise UserError("ICA needs scikit-learn: pip install scikit-learn") from error
    if len(x) <= x.shape[-1]:
        raise UserError(f"ICA in {x.shape[-1]} dimensions needs more than {len(x)} tokens; give more text")
    seed = int(torch.randint(2**31, (), generator=generator))
    fit = FastICA(n_components, whiten="unit-variance", max_iter=iterations, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit.fit(x.double().cpu().numpy())
    if fit.n_iter_ >= iterations:
        log.warning("ICA did not settle within %d iterations", iterations)
    mixing, filters = torch.as_tensor(fit.mixing_).T, torch.as_tensor(fit.components_).T
    length, mean = mixing.norm(dim=-1), torch.from_numpy(fit.mean_)
    return Unmixing((mixing / length[:, None]).to(x), (filters * length).to(x), mean.to(x))


def identity_relu(d_in: int) -> Rectified:
    """The coordinates of the activation with their negative part cut off, the baseline of Cunningham et al. 2023.

    Exact only where no coordinate is negative.
    """
    return Rectified(torch.eye(d_in), torch.zeros(d_in))


def neurons(d_in: int) -> Basis:
    """The standard basis: one direction per coordinate of the activation."""
    return Basis(torch.eye(d_in), torch.zeros(d_in))


def random_basis(d_in: int, *, generator: torch.Generator) -> Basis:
    """A complete orthonormal basis drawn uniformly."""
    q, r = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator, dtype=torch.float64))
    return Basis((q * r.diagonal().sign()).T.float().contiguous(), torch.zeros(d_in))
