"""Gradients of a step that are not carried out by autograd, but by an optimiser, latent by latent."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from sae_core.dictionaries.codes import Codes
from sae_core.kernels.interface import Kernels


@dataclass(eq=False)
class Deferred:
    """What `W_enc` and `W_dec` are read from in one step, and, after its backward pass, what their gradients sum up.

    As matrices the gradients would be written, read by the projection and by the optimiser, and zeroed: half of all
    bytes of a step.
    """

    W_enc: Float[Tensor, "n_latents d_in"]
    """A copy of the encoder, transposed, in the precision of products."""
    W_dec: Float[Tensor, "n_latents d_in"]
    """A copy of the decoder."""
    kernels: Kernels
    encoder: tuple[Codes, Tensor] | None = None
    """Codes whose values are slopes, and x - b_dec: dW_enc = x^T slopes."""
    decoder: tuple[Codes, Tensor] | None = None
    """Codes and the gradient of what is decoded: dW_dec = f^T g."""
    dead: tuple[Int[Tensor, "n_dead"], Tensor, Tensor] | None = None
    """Dead latents, and rows of both copies at them, which have their gradients in `.grad`."""

    def rows_at(self, dead: Int[Tensor, "n_dead"]) -> tuple[Tensor, Tensor]:
        """Rows of encoder and decoder, whose gradients are kept apart from those of the sums."""
        W_enc, W_dec = (W.index_select(0, dead).requires_grad_() for W in (self.W_enc, self.W_dec))
        self.dead = dead, W_enc, W_dec
        return W_enc, W_dec
