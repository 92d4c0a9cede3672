"""The one training loop: dictionaries for all sites from one stream of activations.

`train` is a generator that yields after every step with `TrainState` complete, so that a caller can
report, save or stop anywhere; what it saves then continues to the same numbers. Adam, learning rate
2e-4 * sqrt(2^14 / n) unless told (Gao et al. 2024, section A.3, found this to be about right for Adam),
warm-up, and a linear fall to zero over the last fifth.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sae_core.activations import ActivationStream
from sae_core.errors import UserError
from sae_core.objectives import topk_objective
from sae_core.saes import TopKSAE
from sae_core.seeds import generator_for
from sae_core.sites import Site


@dataclass(frozen=True)
class TrainConfig:
    """What to train, and for how long."""

    expansion: int = 4
    """Latents per dimension of the activation."""
    k: int = 16
    """Latents active per token."""
    tokens: int = 2_000_000
    """Tokens to train on, the text being repeated as often as that takes."""
    batch: int = 1024
    """Tokens per step."""
    lr: float | None = None
    """Learning rate; None for 2e-4 * sqrt(2^14 / n_latents)."""
    warm_up: int = 50
    """Steps over which the learning rate rises."""
    dead_after: int = 100_000
    """A latent is dead when it was not active during this many tokens."""
    aux: float = 1 / 32
    """Weight of the auxiliary loss."""
    seed: int = 0

    def __post_init__(self):
        for name in ("expansion", "k", "tokens", "batch", "dead_after"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.tokens < self.batch:
            raise UserError(f"{self.tokens} training tokens are fewer than one batch of {self.batch}")
        if self.lr is not None and not self.lr > 0:
            raise UserError(f"the learning rate must be positive; got {self.lr}")

    @property
    def steps(self) -> int:
        return self.tokens // self.batch

    def rate(self, step: int, n_latents: int) -> float:
        """Learning rate at a step."""
        top = 2e-4 * (2**14 / n_latents) ** 0.5 if self.lr is None else self.lr
        return top * min(1.0, (step + 1) / max(1, self.warm_up), (self.steps - step) / max(1.0, 0.2 * self.steps))


@dataclass(eq=False)
class SiteState:
    """One site's dictionary while it trains."""

    sae: TopKSAE
    optimizer: torch.optim.Adam
    silent: Tensor
    """Tokens since each latent was last active, `[n_latents]`."""
    scale: float
    """Activations are multiplied by this, so that the mean squared norm is d_in."""


@dataclass(eq=False)
class TrainState:
    """Everything that training needs to go on: dictionaries, optimisers, counters, and the cursor."""

    sites: dict[Site, SiteState]
    step: int = 0
    block: int = 0
    position: int = 0
    """Batches of `block` already used."""

    def dictionaries(self) -> dict[Site, TopKSAE]:
        """The dictionaries of unscaled activations, as they are now."""
        return {site: state.sae.rescaled(state.scale) for site, state in self.sites.items()}


@dataclass(frozen=True)
class TrainStep:
    """What one step did, per site."""

    step: int
    loss: dict[Site, float] = field(repr=False)
    fvu: dict[Site, float]
    l0: dict[Site, float]
    n_dead: dict[Site, int]


def start(stream: ActivationStream, config: TrainConfig) -> TrainState:
    """An untrained state: scale and mean are those of the stream's first block."""
    first = list(stream.block(0))
    if not first:
        raise UserError(f"a block holds fewer than {stream.batch} tokens; give a smaller --batch or more text")
    sites = {}
    for site in stream.sites:
        x = torch.cat([batch[site] for batch in first])
        d_in = x.shape[-1]
        scale = (d_in / x.pow(2).sum(-1).mean()).sqrt().item()
        generator = generator_for(config.seed, "init", site)
        sae = TopKSAE(d_in, config.expansion * d_in, config.k, generator=generator).to(x.device)
        sae.b_dec.data.copy_(scale * x.mean(0))
        sites[site] = site_state(sae, scale)
    return TrainState(sites)


def site_state(sae: TopKSAE, scale: float) -> SiteState:
    """A fresh optimiser and counters around a dictionary."""
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.0, betas=(0.9, 0.999), fused=True)
    return SiteState(sae, optimizer, torch.zeros(len(sae.W_dec), dtype=torch.long, device=sae.W_dec.device), scale)


def train(stream: ActivationStream, state: TrainState, config: TrainConfig) -> Iterator[TrainStep]:
    """Train `state` in place to `config.steps`; yields after each step."""
    while state.step < config.steps:
        before = state.step
        for number, batch in enumerate(stream.block(state.block)):
            if number < state.position:
                continue  # used before the interruption
            outcomes = {site: _step(state.sites[site], x, site, state.step, config) for site, x in batch.items()}
            state.step += 1
            state.position = number + 1
            yield TrainStep(
                step=state.step,
                loss={site: o.loss.item() for site, o in outcomes.items()},
                fvu={site: o.fvu.item() for site, o in outcomes.items()},
                l0={site: o.l0.item() for site, o in outcomes.items()},
                n_dead={site: int((s.silent >= config.dead_after).sum()) for site, s in state.sites.items()},
            )
            if state.step == config.steps:
                return
        if state.step == before and not state.position:
            raise UserError(f"block {state.block} of the text holds fewer than {stream.batch} tokens; give more text")
        state.block, state.position = state.block + 1, 0


def _step(state: SiteState, x: Tensor, site: Site, step: int, config: TrainConfig):
    sae = state.sae
    outcome = topk_objective(sae, state.scale * x, state.silent >= config.dead_after, aux=config.aux)
    if not torch.isfinite(outcome.loss):
        cause = (
            "the activations hold NaN or infinity" if not torch.isfinite(x).all() else "the learning rate is too high"
        )
        raise UserError(f"training stopped at {site}, step {step}: the loss is {outcome.loss.item()}; likely {cause}")
    outcome.loss.backward()
    sae.project_gradient()
    for group in state.optimizer.param_groups:
        group["lr"] = config.rate(step, len(sae.W_dec))
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    sae.normalise()
    state.silent = torch.where(outcome.active, 0, state.silent + len(x))
    return outcome
