"""Sparse autoencoders: encode and decode, nothing else. Losses are in `objectives.py`, the loop in `training.py`."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sae_core.errors import UserError


class TopKSAE(nn.Module):
    """Sparse autoencoder that keeps the k largest latents (Gao et al. 2024, section 2.3).

        f     = relu(topk((x - b_dec) W_enc + b_enc))
        x_hat = f W_dec + b_dec

    Rows of `W_dec` are unit vectors; training keeps them so. The encoder starts as a tenth of the
    decoder's transpose: a small encoder measured better than an equal one (lower FVU at equal data).
    """

    def __init__(self, d_in: int, n_latents: int, k: int, *, generator: torch.Generator):
        super().__init__()
        if not 1 <= k <= n_latents:
            raise UserError(f"k must lie between 1 and the number of latents, {n_latents}; got k={k}")
        self.k = k
        self.W_dec = nn.Parameter(F.normalize(torch.randn(n_latents, d_in, generator=generator), dim=-1))
        self.W_enc = nn.Parameter(0.1 * self.W_dec.detach().T.clone())
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def directions(self) -> Float[Tensor, "n_latents d_in"]:
        return self.W_dec

    def pre(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """Latents before the choice of k: (x - b_dec) W_enc + b_enc."""
        return torch.addmm(self.b_enc - self.b_dec @ self.W_enc, x.reshape(-1, x.shape[-1]), self.W_enc).reshape(
            *x.shape[:-1], -1
        )

    def choose(self, pre: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch n_latents"]:
        """Latent activations from `pre`: the k largest where positive, zero elsewhere."""
        top = pre.topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        return self.choose(self.pre(x))

    def decode(self, f: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch d_in"]:
        return f @ self.W_dec + self.b_dec

    @torch.no_grad()
    def normalise(self) -> None:
        """Make every direction a unit vector again."""
        self.W_dec.div_(self.W_dec.norm(dim=-1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Take from each direction's gradient the part along it, which `normalise` would undo."""
        grad = self.W_dec.grad
        if grad is not None:
            grad.sub_((grad * self.W_dec).sum(-1, keepdim=True) * self.W_dec)

    @torch.no_grad()
    def rescaled(self, scale: float) -> "TopKSAE":
        """The dictionary for x, given this one for scale * x: codes and both biases divided by `scale`."""
        other = TopKSAE(*reversed(self.W_dec.shape), self.k, generator=torch.Generator())
        other.load_state_dict(self.state_dict())
        other.b_enc.div_(scale)
        other.b_dec.div_(scale)
        return other.to(self.W_dec.device).requires_grad_(False)
