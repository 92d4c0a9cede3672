"""What a dictionary is, and the orthonormal ones: PCA, neurons, a random basis.

Everything that edits, measures or draws features takes any `Dictionary`, so that a baseline goes through
the same code as a sparse autoencoder.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Dictionary(Protocol):
    """Encoder, decoder, and unit directions: `decode(f) = f @ directions + const`."""

    @property
    def directions(self) -> Tensor:
        """Decoder directions d_j, unit rows `[n_latents, d_in]`."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Latent activations `[..., n_latents]` of activations `[..., d_in]`."""
        ...

    def decode(self, f: Tensor) -> Tensor:
        """Reconstruction `[..., d_in]` of latent activations."""
        ...


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


def pca(x: Float[Tensor, "batch d_in"], n_components: int | None = None) -> Basis:
    """Principal components of `x`, the strongest first; all of them unless told.

    Covariance and its eigenvectors are computed in float64.
    """
    wide = x.double()
    mean = wide.mean(0)
    vectors = torch.linalg.eigh((wide - mean).T @ (wide - mean)).eigenvectors.flip(-1).T
    return Basis(vectors[:n_components].to(x.dtype).contiguous(), mean.to(x.dtype))


def neurons(d_in: int) -> Basis:
    """The standard basis: one direction per coordinate of the activation."""
    return Basis(torch.eye(d_in), torch.zeros(d_in))


def random_basis(d_in: int, *, generator: torch.Generator) -> Basis:
    """A complete orthonormal basis drawn uniformly."""
    q, r = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator, dtype=torch.float64))
    return Basis((q * r.diagonal().sign()).T.float().contiguous(), torch.zeros(d_in))
