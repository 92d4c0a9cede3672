"""Every recipe on a small dictionary as in the middle of training, with its loss and its gradients."""

import torch
from planted import generator
from random_saes import normal
from torch import Tensor

from sae_core.dictionaries.saes import SAE
from sae_core.training.penalty_recipes import Gated, JumpReLU, ReLU
from sae_core.training.recipe import LossContext
from sae_core.training.topk_recipes import BatchTopK, Matryoshka, TopK

D_IN, N_LATENTS, K, BATCH = 8, 40, 3, 64
NONE, SOME = torch.tensor([], dtype=torch.long), torch.tensor([4, 11, 12, 30, 31, 32, 39])
EACH = {
    "topk": TopK(K),
    "multi": TopK(K, multi=1 / 8),
    "no aux": TopK(K, aux=0.0),
    "batchtopk": BatchTopK(K),
    "matryoshka": Matryoshka(K),
    "relu": ReLU(0.7),
    "tied": ReLU(0.7, tied=True),
    "jumprelu": JumpReLU(K, bandwidth=0.6),
    "gated": Gated(0.7),
}


def in_the_middle(recipe, *, dead: Tensor = NONE, seed: int = 0) -> tuple[SAE, Tensor]:
    """A float64 dictionary and activations as in the middle of training; `dead` latents are never chosen."""
    sae = recipe.new(D_IN, N_LATENTS, generator=generator(seed)).double()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sae.named_parameters()):
            if name != "threshold":
                parameter += 0.3 * normal(*parameter.shape, seed=100 + 10 * seed + i)
        sae.normalise()
        if len(dead):
            sae.W_enc[:, dead] *= 0.01
            sae.b_enc[dead] = 0.01
    return sae, 2 * normal(BATCH, D_IN, seed=9 + seed).double() + 0.5


def outcome(recipe, sae: SAE, x: Tensor, dead: Tensor = NONE, ramp: float = 1.0):
    return recipe.loss(sae, x, LossContext(dead, ramp))


def gradients(loss: Tensor, sae: SAE) -> dict[str, Tensor]:
    names, parameters = zip(*[(n, p) for n, p in sae.named_parameters() if p.requires_grad], strict=True)
    result = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, result, strict=True)}


def variance_unexplained(x: Tensor, x_hat: Tensor) -> Tensor:
    return ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
