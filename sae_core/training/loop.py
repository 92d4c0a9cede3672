"""The one training loop: any number of dictionaries, at many sites, from one stream of activations.

`train` is a generator that yields after every step with `TrainState` complete, so that a caller can
report, save or stop anywhere; what it saves then continues to the same numbers. Adam, learning rate
5e-4 * sqrt(2^14 / n) unless told, warm-up, and a linear fall to zero over the last fifth. (The power of n
is that of Gao et al. 2024, section A.3; their factor, 2e-4, is for runs a thousand times as long as the
default here, where it left half as much variance again unexplained.) Nothing in a step waits for a GPU: latents are
sorted into dead and alive, and numbers looked at for NaN, every `LOOK` steps.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sae_core import checks
from sae_core.dictionaries import sparse
from sae_core.dictionaries.saes import SAE
from sae_core.errors import UserError
from sae_core.seeds import generator_for
from sae_core.sites import Site
from sae_core.training.calibration import geometric_median
from sae_core.training.objectives import Moment, Outcome, Recipe, TopK, recipe_from_json, recipe_to_json

LOOK = 32
"""Steps between looks at what lies on the device."""
_MEMORY = 0.99
"""Of the running estimate of a threshold, per step."""


@runtime_checkable
class Stream(Protocol):
    """Where training takes activations from: blocks of batches, each a pure function of its number."""

    @property
    def sites(self) -> tuple[Site, ...]: ...

    @property
    def batch(self) -> int:
        """Tokens per batch."""
        ...

    def block(self, block: int) -> Iterator[dict[Site, Tensor]]:
        """The batches `[batch, d_in]` of one block; the same tokens at every site."""
        ...


@runtime_checkable
class Downstream(Protocol):
    """What a reconstruction does to the language model's predictions."""

    def __call__(self, site: Site, x_hat: Tensor, batch: dict[Site, Tensor]) -> Tensor:
        """KL(model || model with `x_hat` at `site`) in nats per token, differentiable in `x_hat`."""
        ...


@dataclass(frozen=True)
class TrainConfig:
    """What to train, and for how long."""

    recipe: Recipe = field(default_factory=TopK)
    """Architecture and loss."""
    expansion: int = 4
    """Latents per dimension of the activation."""
    tokens: int = 2_000_000
    """Tokens to train on, the text being repeated as often as that takes."""
    batch: int = 1024
    """Tokens per step."""
    lr: float | None = None
    """Learning rate; None for 5e-4 * sqrt(2^14 / n_latents)."""
    warm_up: int = 50
    """Steps over which the learning rate rises; penalties rise over four times as many."""
    dead_after: int = 100_000
    """A latent is dead when it was not active during this many tokens."""
    clip: float | None = None
    """The gradient's norm, over all parameters of one dictionary, is cut to this."""
    bfloat16: bool | None = None
    """Whether TopK, BatchTopK and Matryoshka multiply with the encoder in bfloat16, which makes codes three
    digits exact in training and not otherwise; None for wherever the hardware that the run begins on has
    instructions for it."""
    kl: float = 0.0
    """Weight of KL(model || model with the reconstruction in place), in nats per token."""
    seed: int = 0
    """Of the weights at the start. Of the order of the text only where the stream is given the same one: in a
    sweep, which reads its text once, that is the first member's for all."""

    def __post_init__(self):
        for name in ("expansion", "tokens", "batch", "dead_after"):
            checks.whole(name, getattr(self, name), 1)
        checks.whole("warm_up", self.warm_up)
        checks.whole("the seed", self.seed, None)
        if self.tokens < self.batch:
            raise UserError(f"{self.tokens} training tokens are fewer than one batch of {self.batch}")
        for name, value in (("learning rate", self.lr), ("largest gradient norm", self.clip)):
            if value is not None:
                checks.positive(f"the {name}", value)
        checks.weight("the weight of the KL divergence", self.kl)

    @property
    def steps(self) -> int:
        return self.tokens // self.batch

    def rate(self, step: int, n_latents: int) -> float:
        """Learning rate at a step."""
        top = 5e-4 * (2**14 / n_latents) ** 0.5 if self.lr is None else self.lr
        return top * min(1.0, (step + 1) / max(1, self.warm_up), (self.steps - step) / max(1.0, 0.2 * self.steps))

    def ramp(self, step: int) -> float:
        """Share of the sparsity penalty in force at a step."""
        return min(1.0, (step + 1) / max(1, 4 * self.warm_up))

    def to_json(self) -> dict[str, Any]:
        """As plain values; `from_json` is the inverse."""
        return asdict(self) | {"recipe": recipe_to_json(self.recipe)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "TrainConfig":
        """The configuration these values describe; raises `UserError` for an option there is not."""
        unknown = set(value) - {field.name for field in fields(cls)}
        if unknown:
            raise UserError(f"training has no option {', '.join(sorted(unknown))}")
        recipe = {"recipe": recipe_from_json(value["recipe"])} if "recipe" in value else {}
        return cls(**(dict(value) | recipe))


@dataclass(eq=False)
class SiteState:
    """One dictionary while it trains."""

    sae: SAE
    weights: dict[str, nn.Parameter]
    """The dictionary's parameters as the optimiser sees them: the same memory, in its order."""
    optimizer: torch.optim.Adam
    scale: float
    """Activations are multiplied by this, so that the mean squared norm is d_in."""
    silent: Tensor
    """Tokens since each latent was last active, `[n_latents]`."""
    dead: Tensor
    """Indices of dead latents at the last look."""
    threshold: Tensor
    """Running mean of the smallest activation that a batch kept, and its weight so far, `[2]`."""
    lost: Tensor
    """The first step with a loss that was not a number; -1 so far."""


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
        widths = {state.sae.n_latents for state in self.sites.values()}
        size = f"n{widths.pop()}" if len(widths) == 1 else f"x{self.config.expansion}"
        kind = "tied" if recipe.get("tied") else recipe["kind"]
        own = [f"{name}{recipe[name]:g}" for name in ("k", "l1") if name in recipe]
        own += [f"kl{self.config.kl:g}"] if self.config.kl else []
        return "-".join([kind, size, *own, f"seed{self.config.seed}"])

    def dictionaries(self) -> dict[Site, SAE]:
        """The finished dictionaries of unscaled activations, as they are now.

        Where a batch chose the active latents, the threshold is the running mean of the smallest that
        was kept; `calibrate` finds one for a given L0.
        """
        found = {}
        for site, state in self.sites.items():
            found[site] = sae = state.sae.unscaled(state.scale)
            if state.threshold[1] > 0:
                sae.threshold.data.fill_((state.threshold[0] / state.threshold[1]).item() / state.scale)
        return found


@dataclass(eq=False)
class TrainState:
    """Everything that training needs to go on: dictionaries, optimisers, counters, and the cursor."""

    members: list[Member]
    step: int = 0
    block: int = 0
    position: int = 0
    """Batches of `block` already used."""

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

    def numbers(self) -> list[dict[Site, dict[str, float]]]:
        """Loss, FVU, L0 and dead latents of each member and site."""
        names = ("loss", "fvu", "l0")
        return [
            {
                site: {name: getattr(o, name).item() for name in names} | {"dead": dead[site]}
                for site, o in outcomes.items()
            }
            for outcomes, dead in zip(self.outcomes, self.n_dead, strict=True)
        ]


def start(stream: Stream, *configs: TrainConfig) -> TrainState:
    """An untrained state with a member for each configuration.

    Scale and bias come from the stream's first batches: the bias starts as the geometric median.
    """
    if len({(config.tokens, config.batch) for config in configs}) != 1 or configs[0].batch != stream.batch:
        raise UserError("all that trains in one pass takes the same number of tokens, in the same batches")
    found = _scales_and_centres(stream)
    members = [Member(config, {}, in_bfloat16(config, next(iter(found.values()))[1])) for config in configs]
    for site, (scale, centre) in found.items():
        d_in = len(centre)
        for member in members:
            config = member.config
            generator = generator_for(config.seed, "init", site)
            sae = config.recipe.new(d_in, config.expansion * d_in, generator=generator).to(centre)
            sae.b_dec.data.copy_(centre)
            member.sites[site] = site_state(sae, scale)
    if len({member.name for member in members}) < len(members):
        names = ", ".join(member.name for member in members)
        raise UserError(f"members of a sweep must differ in kind, size, k, l1, kl or seed; got {names}")
    return TrainState(members)


def _scales_and_centres(stream: Stream) -> dict[Site, tuple[float, Tensor]]:
    """For each site the factor at which E|x|^2 = d_in, and the geometric median of activations times that.

    Of the first 2^17 tokens the factor, of the first 2^12 the median. One batch is held at a time, since a
    stream may keep its whole block beside it.
    """
    squares, rows, n = dict.fromkeys(stream.sites, 0.0), {site: [] for site in stream.sites}, 0
    for batch in islice(stream.block(0), max(2, 2**17 // stream.batch)):
        for site, x in batch.items():
            squares[site] += x.pow(2).sum().item()
            if n < 2**12:
                rows[site].append(x[: 2**12 - n].clone())
        n += len(x)
    if not n:
        raise UserError(f"a block holds fewer than {stream.batch} tokens; give a smaller --batch or more text")
    found = {}
    for site in stream.sites:
        x = torch.cat(rows.pop(site))
        scale = math.sqrt(x.shape[-1] * n / squares[site]) if 0 < squares[site] < math.inf else math.nan
        if not 0 < scale < math.inf:
            raise UserError(f"the activations at {site} hold NaN or infinity, or are all zero; look at the model")
        found[site] = scale, scale * geometric_median(x)
    return found


def in_bfloat16(config: TrainConfig, x: Tensor) -> bool:
    """Whether the encoder's product is in bfloat16 for activations like `x`: as asked for, or where it is fast."""
    if config.bfloat16 is not None:
        return config.bfloat16
    return x.dtype is torch.float32 and sparse.multiplies_bfloat16(x.device)


def site_state(sae: SAE, scale: float) -> SiteState:
    """A fresh optimiser and counters around a dictionary."""
    # torch's fused Adam copies gradients that are transposed in memory, and mistakes them if their weights are not
    weights = {
        name: weight if weight.is_contiguous() else nn.Parameter(weight.detach().T)
        for name, weight in sae.named_parameters()
        if weight.requires_grad
    }
    optimizer = torch.optim.Adam(weights.values(), lr=0.0, betas=(0.9, 0.999), fused=True)
    place = {"device": sae.W_dec.device}
    silent = torch.zeros(sae.n_latents, dtype=torch.long, **place)
    lost = torch.full((), -1, dtype=torch.long, **place)
    return SiteState(sae, weights, optimizer, scale, silent, silent[:0].clone(), torch.zeros(2, **place), lost)


def train(stream: Stream, state: TrainState, downstream: Downstream | None = None) -> Iterator[TrainStep]:
    """Train `state` in place to the end of its configuration; yields after each step.

    Raises `UserError`, naming site and step, where a loss is not a number or no latent is active any more.
    """
    config, scratch = state.members[0].config, {False: sparse.Scratch(), True: sparse.Scratch(torch.bfloat16)}
    if any(member.config.kl for member in state.members) and downstream is None:
        raise UserError("training on the KL divergence needs the language model: give `downstream`")
    while state.step < config.steps:
        before = state.step
        for number, batch in enumerate(stream.block(state.block)):
            if number < state.position:
                continue  # used before the interruption
            outcomes = [
                {site: step(member, site, batch, state.step, scratch[member.bfloat16], downstream) for site in batch}
                for member in state.members
            ]
            state.step += 1
            state.position = number + 1
            if state.step % LOOK == 0 or state.step == config.steps:
                check_finite(state)
                for member, done in zip(state.members, outcomes, strict=True):
                    _look(member, done, state.step)
            n_dead = [{site: len(own.dead) for site, own in member.sites.items()} for member in state.members]
            yield TrainStep(state.step, outcomes, n_dead)
            if state.step == config.steps:
                return
        if state.step == before and not state.position:
            raise UserError(f"block {state.block} of the text holds fewer than {stream.batch} tokens; give more text")
        state.block, state.position = state.block + 1, 0


def step(
    member: Member,
    site: Site,
    batch: dict[Site, Tensor],
    number: int,
    scratch: sparse.Scratch,
    downstream: Downstream | None = None,
) -> Outcome:
    """One step of one dictionary, in place; on a GPU it waits for nothing."""
    config, state, x = member.config, member.sites[site], batch[site]
    sae = state.sae
    outcome = config.recipe.loss(sae, state.scale * x, Moment(state.dead, config.ramp(number), scratch))
    loss = outcome.loss
    if config.kl:
        loss = loss + config.kl * downstream(site, outcome.x_hat / state.scale, batch)
    loss.backward()
    sae.project_gradient()
    if config.clip:
        torch.nn.utils.clip_grad_norm_(sae.parameters(), config.clip)
    for name, weight in sae.named_parameters():
        if weight.grad is not None and state.weights[name] is not weight:
            state.weights[name].grad, weight.grad = weight.grad.T, None
    for group in state.optimizer.param_groups:
        group["lr"] = config.rate(number, sae.n_latents)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    sae.normalise()
    state.silent = (state.silent + len(x)).masked_fill(outcome.active, 0)
    if outcome.threshold is not None:
        kept = torch.stack([outcome.threshold.nan_to_num(posinf=0.0), torch.ones_like(outcome.threshold)])
        state.threshold = _MEMORY * state.threshold + (1 - _MEMORY) * kept
    state.lost = state.lost.masked_fill((state.lost < 0) & ~torch.isfinite(loss), number)
    return outcome


def check_finite(state: TrainState) -> None:
    """Raise `UserError` with the first step at which a loss was not a number, if one ever was."""
    for member in state.members:
        for site, own in member.sites.items():
            if (lost := own.lost.item()) >= 0:
                raise UserError(
                    f"training of {member.name} stopped at {site}, step {lost + 1}: the loss is not a number; "
                    "likely the learning rate is too high, or the activations hold NaN or infinity"
                )


def _look(member: Member, outcomes: dict[Site, Outcome], step: int) -> None:
    """Find the dead latents; raise `UserError` where none is active any more."""
    config = member.config
    for site, own in member.sites.items():
        own.dead = (own.silent >= config.dead_after).nonzero().squeeze(-1)
        if step > 4 * config.warm_up and outcomes[site].l0 == 0:
            raise UserError(
                f"training of {member.name} stopped at {site}, step {step}: no latent is active any more; "
                "likely the sparsity penalty or the learning rate is too high"
            )
