"""How good the values of active latents are: refined with the decoder held fixed.

    z' = argmin |x - b - D z|^2  over z >= 0 that are zero wherever f(x) is       for every token by itself

By f'/f one sees whether a dictionary shrinks: an L1 penalty makes values smaller than what reconstructs best, TopK does
not (Gao et al. 2024, section 5.1). Solved from f on by accelerated projected gradient steps (Beck and Teboulle 2009),
started anew where momentum points uphill (O'Donoghue and Candes 2015); at an optimum they stand still. Codes below 0,
which dictionaries behind a normalisation may have, keep their values. Cost: K^2 multiplications a token and step, K
being the most active latents of a token.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.dictionaries.dictionary import Dictionary

STEPS, SETTLED = 300, 1e-6
"""At most so many steps, and the change, as a share of the largest value, below which a step is the last."""
_GRAM_AT_ONCE = 2**24


@torch.no_grad()
def refined(
    dictionary: Dictionary, x: Float[Tensor, "tokens d_in"], f: Float[Tensor, "tokens n_latents"], steps: int = STEPS
) -> Float[Tensor, "tokens n_latents"]:
    """The best codes of the same support as `f`."""
    most = max(1, int((f > 0).sum(-1).max()))
    few = max(1, _GRAM_AT_ONCE // most**2)
    parts = zip(x.split(few), f.split(few), strict=True)
    return torch.cat([_refined(dictionary, *part, most, steps) for part in parts])


def _refined(dictionary: Dictionary, x: Tensor, f: Tensor, most: int, steps: int) -> Tensor:
    # with z0 the active codes, r = x - decode(f) and D their directions [tokens, K, d]: the error is
    #   |r - D (z - z0)|^2,   half its gradient  G (z - z0) - D r,   G = D D^T,   of Lipschitz constant lambda_max(G)
    z0, latent = f.topk(most, dim=-1)
    active = z0 > 0
    D = dictionary.directions[latent] * active[..., None]
    z0 = z0 * active
    gram, pull = D @ D.mT, (D @ (x - dictionary.decode(f))[..., None])[..., 0]
    step = 1 / gram.abs().sum(-1).amax(-1, keepdim=True).clamp_min(1e-12)  # a bound on lambda_max
    z, ahead, t = z0, z0, torch.ones_like(step)
    for _ in range(steps):
        slope = (gram @ (ahead - z0)[..., None])[..., 0] - pull
        new = ((ahead - step * slope).clamp_min(0)) * active
        uphill = ((ahead - new) * (new - z)).sum(-1, keepdim=True) > 0
        t_new = torch.where(uphill, 1.0, (1 + (1 + 4 * t.square()).sqrt()) / 2)
        ahead = torch.where(uphill, new, new + (t - 1) / t_new * (new - z))
        change, z, t = (new - z).abs().amax(), new, t_new
        if change <= SETTLED * z.amax():
            break
    return f.scatter(-1, latent, torch.where(active, z, f.gather(-1, latent)))
