"""Random dictionaries of every kind that `sae_core/dictionaries/kinds.py` lists."""

from dataclasses import fields

import torch
import torch.nn.functional as F
from planted import generator

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.kinds import BASELINES, NORMALISATIONS, SAES, Kind
from sae_core.dictionaries.saes import SAE, TiedSAE

D_IN, N_LATENTS, K = 8, 24, 3
_SETTINGS = {"k": K}
KINDS = {kind.name: kind for kind in SAES} | {"tied": Kind("tied", TiedSAE)}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def untrained(kind: str, seed: int = 0, d_in: int = D_IN, n_latents: int = N_LATENTS) -> SAE:
    """A dictionary as it is born."""
    settings = [_SETTINGS[name] for name in KINDS[kind].settings]
    return KINDS[kind].type(d_in, n_latents, *settings, generator=generator(seed))


def random_sae(kind: str = "topk", seed: int = 0, d_in: int = D_IN, n_latents: int = N_LATENTS) -> SAE:
    """A dictionary of which nothing is at its initial value, as in the middle of training."""
    sae = untrained(kind, seed, d_in, n_latents)
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sae.named_parameters()):
            parameter += 0.3 * normal(*parameter.shape, seed=10 * seed + i + 1)
            if name == "threshold":
                parameter.abs_()
        sae.normalise()
    return sae


def with_gain(d_in: int = D_IN) -> SAE:
    """A TopK dictionary of directions that had other lengths elsewhere."""
    sae = random_sae("topk", d_in=d_in).requires_grad_(False)
    sae.gain = torch.linspace(0.5, 2.0, sae.n_latents)
    return sae


def every_autoencoder(d_in: int = D_IN) -> dict[str, Dictionary]:
    """One of every kind, also with gains and tied, plain and behind each normalisation."""
    saes = {kind: random_sae(kind, d_in=d_in).requires_grad_(False) for kind in KINDS} | {"gain": with_gain(d_in)}
    behind = {
        f"{norm.name}, {name}": norm.type(sae) for norm in NORMALISATIONS for name, sae in saes.items() if name in KINDS
    }
    return saes | behind


def every_dictionary(d_in: int = D_IN) -> dict[str, Dictionary]:
    """Every autoencoder, and a random one of every baseline."""
    shapes = {"directions": (N_LATENTS, d_in), "filters": (d_in, N_LATENTS), "mean": (d_in,)}
    baselines = {}
    for kind in BASELINES:
        tensors = {part.name: normal(*shapes[part.name], seed=i) for i, part in enumerate(fields(kind.type))}
        baselines[kind.name] = kind.type(**tensors | {"directions": F.normalize(tensors["directions"], dim=-1)})
    return every_autoencoder(d_in) | baselines
