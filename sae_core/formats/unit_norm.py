"""Any autoencoder as one of ours, with unit directions and an encoder that reads x - b_dec.

    d_j   = D_j / |D_j|                     D_j a row of the other decoder
    f_j   = |D_j| g_j                       g_j its code
    b_enc = its b_enc + b_dec W_enc         where its encoder reads x itself

so that f D, and hence the reconstruction, is what it was. Rows within 1e-5 of a unit vector, and all that
would be scaled with them, stay as they are to the bit.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.dictionaries.saes import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE

_UNIT = 1e-5


@dataclass(frozen=True, eq=False)
class Raw:
    """A foreign autoencoder in our orientation; what is given beyond the first four says which it is."""

    W_enc: Float[Tensor, "d_in n_latents"]
    b_enc: Float[Tensor, "n_latents"] | None
    W_dec: Float[Tensor, "n_latents d_in"]
    b_dec: Float[Tensor, "d_in"]
    threshold: Float[Tensor, "n_latents"] | None = None
    k: int | None = None
    gate: tuple[Tensor, Tensor, Tensor] | None = None
    """b_gate, b_mag and r_mag."""
    subtracts: bool = True
    """Whether its encoder reads x - b_dec; else x."""
    rescaled: bool = False
    """Whether it chooses latents by what they would be with unit directions."""


def convert(raw: Raw) -> SAE:
    """The same autoencoder with unit directions and an encoder that reads x - b_dec."""
    directions, norms = unit_rows(raw.W_dec)
    values = {"W_enc": raw.W_enc, "W_dec": directions, "b_dec": raw.b_dec}
    (n_latents, d_in), generator = directions.shape, torch.Generator()

    def bias(b: Tensor | None, factor: Tensor | float = 1.0) -> Tensor:
        assert b is not None  # only gated ones have none
        return b if raw.subtracts else (b + factor * _product(raw.b_dec, raw.W_enc)).float()

    if raw.gate is not None:
        sae = GatedSAE(d_in, n_latents, generator=generator)
        b_gate, b_mag, r_mag = raw.gate
        values["W_enc"] = raw.W_enc * (norms > 0)
        values["b_gate"], values["b_mag"] = bias(b_gate), bias(b_mag, r_mag.exp()) * norms
        values["r_mag"] = torch.where((norms == 1) | (norms == 0), r_mag, r_mag + norms.log())
    elif raw.k is not None and not raw.rescaled:
        sae = TopKSAE(d_in, n_latents, raw.k, generator=generator)
        values["b_enc"] = bias(raw.b_enc)
        if not (norms == 1).all():
            sae.gain = norms
    else:
        values["W_enc"], values["b_enc"] = raw.W_enc * norms, bias(raw.b_enc) * norms
        if raw.k is not None:
            sae = TopKSAE(d_in, n_latents, raw.k, generator=generator)
        elif raw.threshold is not None:
            sae = JumpReLUSAE(d_in, n_latents, generator=generator)
            values["threshold"] = raw.threshold if raw.rescaled else raw.threshold * norms
        else:
            sae = ReLUSAE(d_in, n_latents, generator=generator)
    with torch.no_grad():
        for name, value in values.items():
            getattr(sae, name).copy_(value)
    return sae.requires_grad_(False)


def unit_rows(W_dec: Float[Tensor, "n_latents d_in"]) -> tuple[Tensor, Tensor]:
    """Unit directions and the norms they had: 1 exactly for rows that are left alone.

    A row of zeros has no direction; it gets the first axis, and the norm 0 keeps its latent inactive.
    """
    norms = torch.linalg.vector_norm(W_dec, dim=-1, dtype=torch.float64).float()
    norms[(norms - 1).abs() < _UNIT] = 1
    norms[norms < 1e-30] = 0
    directions = W_dec / norms.where(norms > 0, 1)[:, None]
    directions[norms == 0] = torch.eye(1, W_dec.shape[1])
    return directions, norms


def _product(b: Float[Tensor, "d_in"], W: Float[Tensor, "d_in n_latents"]) -> Tensor:
    """b W in float64, a few thousand columns at a time."""
    return torch.cat([b.double() @ part.double() for part in W.split(4096, dim=1)])
