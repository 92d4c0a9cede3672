"""Autoencoders of normalised activations, as dictionaries of the activations themselves.

Some are trained on activations that are normalised token by token. What was taken out is put back as
latents: `decode(f) = f @ directions` without a constant, so that editing and measuring need not know.
"""

from math import inf, sqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sae_core.dictionaries.saes import SAE
from sae_core.outliers import inliers

_EPS = 1e-5


class Normed(nn.Module):
    """What they share: the directions of `inner`, then that of its `b_dec`, then others. Not to be instantiated.

    The latents of `inner` keep their indices. The added ones are active on every token: `len(extra) + 1`
    of the measured L0 are theirs.
    """

    directions: Float[Tensor, "n_latents d_in"]
    outlier_norm = inf
    """Norm of an activation above which it has the code zero."""

    def __init__(self, inner: SAE, *extra: Float[Tensor, "d_in"]):
        super().__init__()
        self.inner = inner.requires_grad_(False)
        b_dec = inner.b_dec.detach()
        axis = F.one_hot(torch.tensor(0), inner.d_in).to(b_dec)  # where there is no bias, any direction will do
        rows = [F.normalize(b_dec, dim=0) if b_dec.any() else axis, *extra]
        self.register_buffer("directions", torch.cat([inner.W_dec.detach(), torch.stack(rows)]), persistent=False)

    @property
    def d_in(self) -> int:
        return self.directions.shape[1]

    @property
    def n_latents(self) -> int:
        return self.directions.shape[0]

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """Latent activations, in units of `x`; zero for outliers."""
        f = self.codes(x)
        return f if self.outlier_norm == inf else f * inliers(x, self.outlier_norm)[..., None]

    def codes(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """Latent activations, in units of `x`, of outliers too."""
        raise NotImplementedError

    def decode(self, f: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction from latent activations; there is no constant."""
        return f @ self.directions


class LayerNormed(Normed):
    """An SAE of z = (x - m) / (s + 1e-5), m the mean and s the (unbiased) standard deviation of x over its dimensions.

        f     = (s g, s |b_dec|, m sqrt(d)),  g = inner.encode(z)
        x_hat = s inner.decode(g) + m = f D,  D = (W_dec, b_dec / |b_dec|, 1 / sqrt(d))

    How OpenAI's TopK autoencoders normalise (`LN` in their `model.py`), and SAELens' `layer_norm`. Decoding
    multiplies by s, not by s + 1e-5.
    """

    def __init__(self, inner: SAE):
        super().__init__(inner, torch.full_like(inner.b_dec, 1 / sqrt(inner.d_in)))

    def codes(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        mean = x.mean(-1, keepdim=True)
        std = (x - mean).std(-1, keepdim=True)
        f = self.inner.encode((x - mean) / (std + _EPS))
        return torch.cat([std * f, std * self.inner.b_dec.norm(), mean * sqrt(self.d_in)], -1)


class Centred(Normed):
    """An SAE of z = x - m, m the mean of x over its dimensions.

        f     = (g, |b_dec|, m sqrt(d)),  g = inner.encode(z)
        x_hat = inner.decode(g) + m = f D,  D = (W_dec, b_dec / |b_dec|, 1 / sqrt(d))

    For SAEs of a model that TransformerLens loaded with `center_writing_weights`: every matrix that writes to
    the residual has its mean over the output taken out, so that residuals and what is added to them are the
    model's own less their mean. A LayerNorm cannot tell; it does this to models with LayerNorm only.
    """

    def __init__(self, inner: SAE):
        super().__init__(inner, torch.full_like(inner.b_dec, 1 / sqrt(inner.d_in)))

    def codes(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        mean = x.mean(-1, keepdim=True)
        f = self.inner.encode(x - mean)
        return torch.cat([f, self.inner.b_dec.norm().expand_as(mean), mean * sqrt(self.d_in)], -1)


class NormRescaled(Normed):
    """An SAE of z = x / s, s = |x| / sqrt(d): every token at the same norm.

        f     = (s g, s |b_dec|),  g = inner.encode(z)
        x_hat = s inner.decode(g) = f D,  D = (W_dec, b_dec / |b_dec|)

    SAELens' `constant_norm_rescale`. Zero activations have zero codes.
    """

    def __init__(self, inner: SAE):
        super().__init__(inner)

    def codes(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        scale = x.norm(dim=-1, keepdim=True) / sqrt(self.d_in)
        f = self.inner.encode(x / scale.clamp_min(torch.finfo(x.dtype).tiny))
        return torch.cat([scale * f, scale * self.inner.b_dec.norm()], -1)


Autoencoder = SAE | Normed
"""What a saved set holds: an autoencoder of the activations, or one behind a normalisation."""
