"""Random autoencoders of every kind."""

import torch
from planted import generator

from sae_core.dictionaries.saes import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TiedSAE, TopKSAE

D_IN, N_LATENTS, K = 8, 24, 3


KINDS = {
    "relu": ReLUSAE,
    "tied": TiedSAE,
    "topk": lambda *sizes, generator: TopKSAE(*sizes, K, generator=generator),
    "jumprelu": JumpReLUSAE,
    "gated": GatedSAE,
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def random_sae(kind: str = "topk", seed: int = 0) -> SAE:
    """A dictionary of which nothing is at its initial value, as in the middle of training."""
    sae = KINDS[kind](D_IN, N_LATENTS, generator=generator(seed))
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sae.named_parameters()):
            parameter += 0.3 * normal(*parameter.shape, seed=10 * seed + i + 1)
            if name == "threshold":
                parameter.abs_()
        sae.normalise()
    return sae
