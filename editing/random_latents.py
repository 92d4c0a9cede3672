"""Random latents to compare chosen ones with: as many, each about as often active as the one in whose place it is."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sae_core.errors import UserError
from sae_core.sites import Site

NEAREST = 10
"""A latent is drawn from so many of nearest density."""


def latents_of_like_density(
    site: Site, density: Float[Tensor, "n_latents"], latents: Sequence[int], *, generator: torch.Generator
) -> list[int]:
    """As many other latents as `latents`, each drawn from the ten left whose log density is nearest to one of them.

    Latents that are never active (density 0) are not drawn. Raises `UserError` where there are too few others.
    """
    log_density = density.double().cpu().clamp_min(1e-9).log()
    free = density.cpu() > 0
    free[list(latents)] = False
    n_free = int(free.sum())
    if n_free < len(latents):
        raise UserError(
            f"the dictionary at {site} has {n_free} active latents besides the {len(latents)} chosen ones: too few "
            "latents to draw as many random ones; choose fewer or train a larger dictionary"
        )
    drawn: list[int] = []
    for j in latents:
        distance = (log_density - log_density[j]).abs().masked_fill(~free, torch.inf)
        nearest = distance.topk(min(NEAREST, int(free.sum())), largest=False).indices
        drawn.append(int(nearest[torch.randint(len(nearest), (1,), generator=generator)]))
        free[drawn[-1]] = False
    return drawn
