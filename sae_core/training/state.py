"""What training carries from step to step, complete after every step, and what a step reports."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sae_core.dictionaries.saes import SAE, JumpReLUSAE
from sae_core.errors import UserError
from sae_core.outliers import Limits
from sae_core.sharding.ranks import ALONE, Ranks
from sae_core.sharding.weights import whole
from sae_core.sites import Site
from sae_core.training.config import TrainConfig, recipe_to_json
from sae_core.training.latent_step import LatentStep
from sae_core.training.recipe import Outcome


@dataclass(eq=False)
class SiteState:
    """One dictionary while it trains."""

    sae: SAE
    weights: dict[str, nn.Parameter]
    """The dictionary's parameters as the optimiser sees them: the same memory, in its order."""
    optimizer: torch.optim.Adam
    scale: float
    """Activations are multiplied by this, so that the mean squared norm is d_in."""
    outlier_norm: float
    """Tokens of a larger norm, before that, are left out."""
    silent: Tensor
    """Tokens since each latent was last active, `[n_latents]`."""
    dead: Tensor
    """Indices of dead latents at the last look."""
    threshold: Tensor
    """Running mean of the smallest activation that a batch kept, and its weight so far, `[2]`."""
    lost: Tensor
    """The first step with a loss that was not a number; -1 so far."""
    ranks: Ranks
    """Over which the latents are spread: those of `sae`, of `silent` and of `dead` are this rank's."""
    n_latents: int
    """Of the whole dictionary."""
    dead_elsewhere: int = 0
    """How many latents of other ranks were dead at the last look."""
    in_one_pass: LatentStep | None = None
    """What steps both matrices, where the device has kernels for it; else the optimiser does."""


@dataclass(eq=False)
class Member:
    """One configuration with its dictionaries."""

    config: TrainConfig
    sites: dict[Site, SiteState]
    bfloat16: bool
    """Whether the encoder's product is in bfloat16: as the configuration has it, or where the run began it is fast."""

    @property
    def name(self) -> str:
        """What tells members of a sweep apart, e.g. `topk-n1024-k16-seed0`."""
        recipe = recipe_to_json(self.config.recipe)
        widths = {state.n_latents for state in self.sites.values()}
        size = f"n{widths.pop()}" if len(widths) == 1 else f"x{self.config.expansion}"
        kind = "tied" if recipe.get("tied") else recipe["kind"]
        options = [f"{name}{recipe[name]:g}" for name in ("k", "l1") if name in recipe]
        options += [f"kl{self.config.kl:g}"] if self.config.kl else []
        return "-".join([kind, size, *options, f"seed{self.config.seed}"])

    def dictionaries(self) -> dict[Site, SAE]:
        """The finished dictionaries of unscaled activations, as they are now.

        Of several ranks rank 0 alone has them, in its host's memory; all must ask.

        Where a batch chose the active latents, the threshold is the running mean of the smallest that
        was kept; `calibrate` finds one for a given L0.
        """
        dictionaries = {}
        for site, state in self.sites.items():
            sae = state.sae if state.ranks.size == 1 else whole(state.sae, state.n_latents, state.ranks)
            if sae is None:
                continue
            dictionaries[site] = sae = sae.unscaled(state.scale)
            sae.outlier_norm = state.outlier_norm
            if state.threshold[1] > 0 and isinstance(sae, JumpReLUSAE):
                sae.threshold.data.fill_((state.threshold[0] / state.threshold[1]).item() / state.scale)
        return dictionaries


@dataclass(eq=False)
class TrainState:
    """Everything that training needs to go on: dictionaries, optimisers, counters, and the cursor."""

    members: list[Member]
    step: int = 0
    block: int = 0
    position: int = 0
    """Batches of `block` already used."""

    @property
    def ranks(self) -> Ranks:
        """Over which all dictionaries are spread."""
        return next(iter(self.members[0].sites.values())).ranks

    @property
    def limits(self) -> Limits:
        """The norm at each site above which tokens are left out, the same for all members."""
        return {site: state.outlier_norm for site, state in self.members[0].sites.items()}

    def dictionaries(self) -> dict[Site, SAE]:
        """The dictionaries of the only member."""
        (member,) = self.members
        return member.dictionaries()


@dataclass(frozen=True, eq=False)
class TrainStep:
    """What one step did: by member and site. Reading a number may wait for the device."""

    step: int
    outcomes: list[dict[Site, Outcome]]
    n_dead: list[dict[Site, int]]
    """At the last look."""

    def numbers(self) -> list[dict[Site, dict[str, float | int]]]:
        """Loss, FVU, L0 and dead latents of each member and site."""
        names = ("loss", "fvu", "l0")
        return [
            {
                site: {name: getattr(o, name).item() for name in names} | {"dead": dead[site]}
                for site, o in outcomes.items()
            }
            for outcomes, dead in zip(self.outcomes, self.n_dead, strict=True)
        ]


def site_state(
    sae: SAE, scale: float, outlier_norm: float = math.inf, ranks: Ranks = ALONE, n_latents: int | None = None
) -> SiteState:
    """A fresh optimiser and counters around a dictionary, or around a rank's latents of it."""
    # torch's fused Adam copies gradients that are transposed in memory, and mistakes them if their weights are not
    weights = {
        name: weight if weight.is_contiguous() else nn.Parameter(weight.detach().T)
        for name, weight in sae.named_parameters()
        if weight.requires_grad
    }
    optimizer = torch.optim.Adam(weights.values(), lr=0.0, betas=(0.9, 0.999), fused=True)
    device = sae.W_dec.device
    silent = torch.zeros(sae.n_latents, dtype=torch.long, device=device)
    lost = torch.full((), -1, dtype=torch.long, device=device)
    threshold = torch.zeros(2, device=device, dtype=sae.W_dec.dtype)
    counters = (silent, silent[:0].clone(), threshold, lost)
    return SiteState(sae, weights, optimizer, scale, outlier_norm, *counters, ranks, n_latents or sae.n_latents)


def check_finite(state: TrainState) -> None:
    """Raise `UserError` with the first step at which a loss was not a number, if one ever was."""
    for member in state.members:
        for site, at_site in member.sites.items():
            if (lost := at_site.lost.item()) >= 0:
                raise UserError(
                    f"training of {member.name} stopped at {site}, step {lost + 1}: the loss is not a number; "
                    "likely the learning rate is too high, or the activations hold NaN or infinity"
                )
