"""What a dictionary is.

Everything that edits, measures or draws features takes any `Dictionary`, so that a baseline goes through
the same code as a sparse autoencoder.
"""

from typing import Protocol, runtime_checkable

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
