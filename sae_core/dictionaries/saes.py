"""Sparse autoencoders: encode and decode, nothing else. Their losses are in `training`.

All share

    pre   = (x - b_dec) W_enc + b_enc
    f     = activate(pre)
    x_hat = f W_dec + b_dec

with unit rows of `W_dec`, and differ in `activate`. What a token's code is never depends on other tokens.
A token whose norm is above `outlier_norm` has the code zero (`sae_core/outliers.py`).
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sae_core.dictionaries.sparse import top
from sae_core.errors import UserError
from sae_core.outliers import inliers

_ROWS = 512
"""Directions at once where all are passed over several times: as many as stay in the cache of a CPU."""


class SAE(nn.Module):
    """What the architectures share. Not to be instantiated.

    `encoder` times the decoder's transpose is the encoder at the start (Gao et al. 2024, section 2.4;
    a tenth gave lower FVU at equal data for TopK than the whole); None leaves `W_enc` to the architecture.
    """

    in_units_of_x = ("b_enc", "b_dec")
    """Parameters that scale with the activations; the others do not."""
    outlier_norm = math.inf
    """Norm of an activation above which it has the code zero."""

    def __init__(self, d_in: int, n_latents: int, *, generator: torch.Generator, encoder: float | None = 1.0):
        super().__init__()
        self.W_dec = nn.Parameter(F.normalize(torch.randn(n_latents, d_in, generator=generator), dim=-1))
        # transposed in memory: the encoder's gradient comes latent by latent, as the decoder's does
        if encoder is not None:
            self.W_enc = nn.Parameter((encoder * self.W_dec.detach()).T)
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def directions(self) -> Float[Tensor, "n_latents d_in"]:
        """Unit rows d_j."""
        return self.W_dec

    @property
    def d_in(self) -> int:
        return self.W_dec.shape[1]

    @property
    def n_latents(self) -> int:
        return self.W_dec.shape[0]

    def pre(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """Latents before their activation: (x - b_dec) W_enc + b_enc."""
        flat = x.reshape(-1, x.shape[-1]) - self.b_dec
        return torch.addmm(self.b_enc, flat, self.W_enc).reshape(*x.shape[:-1], -1)

    def activate(self, pre: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch n_latents"]:
        """Latent activations from `pre`."""
        raise NotImplementedError

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """Latent activations of activations; zero for outliers."""
        f = self.codes(x)
        return f if self.outlier_norm == math.inf else f * inliers(x, self.outlier_norm)[..., None]

    def codes(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """Latent activations of activations, of outliers too."""
        return self.activate(self.pre(x))

    def decode(self, f: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction from latent activations."""
        return f @ self.W_dec + self.b_dec

    def only(self, latents: Sequence[int]) -> "SAE":
        """The dictionary of some of the latents alone; their codes are the same as in this one.

        Raises `TypeError` where latents compete, so that a code depends on the rest.
        """
        index = torch.tensor(latents, device=self.b_dec.device)

        def chosen(name: str, value: Tensor) -> Tensor:
            return value if name == "b_dec" else value[:, index] if name == "W_enc" else value[index]

        other = copy.copy(self)
        other._parameters = {
            name: nn.Parameter(chosen(name, p.detach()), requires_grad=False) for name, p in self.named_parameters()
        }
        other._buffers = {name: chosen(name, b) for name, b in self.named_buffers()}
        return other

    @property
    def _rows_at_once(self) -> int:
        return _ROWS if self.W_dec.device.type == "cpu" else self.n_latents

    @torch.no_grad()
    def normalise(self) -> None:
        """Make every direction a unit vector again."""
        for rows in self.W_dec.split(self._rows_at_once):
            rows.div_(torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min_(1e-12))

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Take from each direction's gradient the part along it, which `normalise` would undo."""
        if self.W_dec.grad is None:
            return
        for rows, grad in zip(*(W.split(self._rows_at_once) for W in (self.W_dec, self.W_dec.grad)), strict=True):
            grad.addcmul_(rows, (grad * rows).sum(-1, keepdim=True), value=-1)

    @torch.no_grad()
    def unscaled(self, scale: float) -> "SAE":
        """The finished dictionary for x, given this one for scale * x; its codes are these divided by `scale`."""
        other = copy.deepcopy(self).requires_grad_(False)
        for parameter in other.parameters():
            parameter.grad = None
        for name in self.in_units_of_x:
            getattr(other, name).div_(scale)
        return other


class ReLUSAE(SAE):
    """f = relu(pre): as many active latents as are positive (Bricken et al. 2023; sparse by its L1 penalty)."""

    def activate(self, pre: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch n_latents"]:
        return pre.relu()


class TiedSAE(ReLUSAE):
    """A ReLU autoencoder while it trains with W_enc = W_dec^T (Cunningham et al. 2023, section 2).

    Once trained it is a plain `ReLUSAE`.
    """

    def __init__(self, d_in: int, n_latents: int, *, generator: torch.Generator):
        super().__init__(d_in, n_latents, generator=generator, encoder=None)

    @property
    def W_enc(self) -> Float[Tensor, "d_in n_latents"]:  # noqa: N802
        return self.W_dec.T

    @torch.no_grad()
    def unscaled(self, scale: float) -> SAE:
        other = ReLUSAE(self.d_in, self.n_latents, generator=torch.Generator()).to(self.W_dec)
        for name, value in {**self.state_dict(), "W_enc": self.W_dec.T}.items():
            getattr(other, name).copy_(value)
        return other.unscaled(scale)


class TopKSAE(SAE):
    """f = relu(the k largest of pre) (Gao et al. 2024, section 2.3).

    `gain`, where a foreign file had directions of other lengths, multiplies the activations after the choice.
    """

    def __init__(self, d_in: int, n_latents: int, k: int, *, generator: torch.Generator):
        if not 1 <= k <= n_latents:
            raise UserError(f"k must lie between 1 and the number of latents, {n_latents}; got k={k}")
        super().__init__(d_in, n_latents, generator=generator, encoder=0.1)
        self.k = k
        self.gain: Tensor | None
        self.register_buffer("gain", None, persistent=False)

    def only(self, latents: Sequence[int]) -> SAE:
        raise TypeError("latents of a TopK dictionary compete: none has a code of its own")

    def activate(self, pre: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch n_latents"]:
        values, indices = top(pre.reshape(-1, pre.shape[-1]), self.k)
        values = values.relu() if self.gain is None else values.relu() * self.gain[indices]
        flat = pre.new_zeros(len(values), pre.shape[-1]).scatter(-1, indices, values)
        return flat.reshape(pre.shape)


class JumpReLUSAE(SAE):
    """f = pre where pre > threshold, else 0 (Rajamanoharan et al. 2024b, section 3).

    Also what BatchTopK and Matryoshka are once trained, with one threshold for all latents.
    """

    in_units_of_x = ("b_enc", "b_dec", "threshold")

    def __init__(self, d_in: int, n_latents: int, *, generator: torch.Generator, encoder: float = 1.0):
        super().__init__(d_in, n_latents, generator=generator, encoder=encoder)
        self.threshold = nn.Parameter(torch.zeros(n_latents))

    @torch.no_grad()
    def normalise(self) -> None:
        """Make every direction a unit vector again, and no threshold negative: below 0 it would learn nothing."""
        super().normalise()
        self.threshold.clamp_min_(0)

    def activate(self, pre: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch n_latents"]:
        return pre * (pre > self.threshold.clamp_min(0))


class GatedSAE(SAE):
    """Which latents are active and how strongly, apart (Rajamanoharan et al. 2024a, section 3.2).

        pre = (x - b_dec) W_enc
        f   = [pre + b_gate > 0] * relu(exp(r_mag) * pre + b_mag)

    There is no `b_enc`; it is the constant zero.
    """

    in_units_of_x = ("b_gate", "b_mag", "b_dec")

    def __init__(self, d_in: int, n_latents: int, *, generator: torch.Generator):
        super().__init__(d_in, n_latents, generator=generator)
        del self.b_enc
        self.register_buffer("b_enc", torch.zeros(n_latents), persistent=False)
        self.b_gate = nn.Parameter(torch.zeros(n_latents))
        self.b_mag = nn.Parameter(torch.zeros(n_latents))
        self.r_mag = nn.Parameter(torch.zeros(n_latents))

    def magnitude(self, pre: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch n_latents"]:
        """How strongly a latent would be active."""
        return (self.r_mag.exp() * pre + self.b_mag).relu()

    def activate(self, pre: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch n_latents"]:
        return (pre + self.b_gate > 0) * self.magnitude(pre)
