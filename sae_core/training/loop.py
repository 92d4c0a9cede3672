"""The one training loop: any number of dictionaries, at many sites, from one stream of activations.

`train` is a generator that yields after every step with `TrainState` complete, so that a caller can
report, save or stop anywhere; what it saves then continues to the same numbers. Adam, learning rate
5e-4 * sqrt(2^14 / n) by default, warm-up, and a linear fall to zero over the last fifth. (The power of n
is that of Gao et al. 2024, section A.3; their factor, 2e-4, is for runs a thousand times as long as the
default here, where it left half as much variance again unexplained.) Nothing in a step waits for a GPU: latents are
sorted into dead and alive, and numbers looked at for NaN, every `LOOK` steps.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sae_core.dictionaries import sparse
from sae_core.dictionaries.deferred import Deferred
from sae_core.errors import UserError
from sae_core.kernels.choice import kernels_for
from sae_core.outliers import FACTOR
from sae_core.seeds import generator_for
from sae_core.sharding.control import of_first, of_other_shards
from sae_core.sharding.ranks import ALONE, Ranks
from sae_core.sharding.weights import untrained
from sae_core.sites import Site
from sae_core.training.calibration import outlier_norms, scales_and_centres
from sae_core.training.config import TrainConfig
from sae_core.training.inputs import ActivationSource, Downstream
from sae_core.training.latent_step import LatentStep
from sae_core.training.recipe import LossContext, Outcome
from sae_core.training.state import Member, SiteState, TrainState, TrainStep, check_finite, site_state
from sae_core.training.topk_recipes import BatchTopK, Matryoshka, TopK

LOOK = 32
"""Steps between looks at what lies on the device."""
_MEMORY = 0.99
"""Of the running estimate of a threshold, per step."""


def start(
    stream: ActivationSource, *configs: TrainConfig, outliers: float = FACTOR, ranks: Ranks = ALONE
) -> TrainState:
    """An untrained state with a member for each configuration, or a rank's part of it.

    Scale and bias come from the stream's first batches: the bias starts as the geometric median. Tokens of more than
    `outliers` times the median norm of a site are left out from here on; with 0 none are.
    """
    if len({(config.tokens, config.batch) for config in configs}) != 1 or configs[0].batch != stream.batch:
        raise UserError("all that trains in one pass takes the same number of tokens, in the same batches")
    limits = of_first(ranks, outlier_norms(stream, outliers))
    scales = scales_and_centres(stream, limits)
    on_cpu = of_first(ranks, {site: (scale, centre.cpu()) for site, (scale, centre) in scales.items()})
    scales = {site: (on_cpu[site][0], on_cpu[site][1].to(scales[site][1])) for site in scales}
    members = [Member(config, {}, in_bfloat16(config, next(iter(scales.values()))[1])) for config in configs]
    for site, (scale, centre) in scales.items():
        d_in = len(centre)
        for member in members:
            config = member.config
            generator = generator_for(config.seed, "init", site)
            size = (d_in, config.expansion * d_in)
            sae = untrained(config.recipe.new, *size, generator=generator, ranks=ranks).to(centre)
            sae.b_dec.data.copy_(centre)
            member.sites[site] = site_state(sae, scale, limits[site], ranks, size[1])
    if len({member.name for member in members}) < len(members):
        names = ", ".join(member.name for member in members)
        raise UserError(f"members of a sweep must differ in kind, size, k, l1, kl or seed; got {names}")
    return TrainState(members)


def in_bfloat16(config: TrainConfig, x: Tensor) -> bool:
    """Whether the encoder's product is in bfloat16 for activations like `x`: as configured, else where it is fast."""
    if config.bfloat16 is not None:
        return config.bfloat16
    return x.dtype is torch.float32 and sparse.multiplies_bfloat16(x.device)


def train(stream: ActivationSource, state: TrainState, downstream: Downstream | None = None) -> Iterator[TrainStep]:
    """Train `state` in place to the end of its configuration; yields after each step.

    Raises `UserError`, naming site and step, where a loss is not a number or no latent is active any more.
    """
    config, scratch = state.members[0].config, {False: sparse.Scratch(), True: sparse.Scratch(torch.bfloat16)}
    if any(member.config.kl for member in state.members) and downstream is None:
        raise UserError("training on the KL divergence needs the language model: give `downstream`")
    while state.step < config.steps:
        before, steps = state.step, config.steps - (state.step - state.position)
        for number, batch in enumerate(stream.block(state.block, state.limits, steps)):
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
            n_dead = [
                {site: len(at_site.dead) + at_site.dead_elsewhere for site, at_site in member.sites.items()}
                for member in state.members
            ]
            yield TrainStep(state.step, outcomes, n_dead)
            if state.step == config.steps:
                return
        if state.step == before and not state.position:
            raise UserError(f"block {state.block} of the text holds fewer than {stream.batch} tokens; give more text")
        state.block, state.position = state.block + 1, 0


def step(
    member: Member,
    site: Site,
    batch: Mapping[Site, Tensor],
    number: int,
    scratch: sparse.Scratch,
    downstream: Downstream | None = None,
) -> Outcome:
    """One step of one dictionary, in place; on a GPU it waits for nothing."""
    config, state = member.config, member.sites[site]
    sae, ranks = state.sae, state.ranks
    state.in_one_pass = state.in_one_pass or _in_one_pass(config, state, scratch)
    deferred = state.in_one_pass.begin() if state.in_one_pass else None
    spread = (ranks, state.dead_elsewhere, state.n_latents)
    known = LossContext(state.dead, config.ramp(number), scratch, *spread, deferred)
    outcome = config.recipe.loss(sae, state.scale * ranks.rows(batch[site]), known)
    loss = outcome.loss
    if config.kl:
        assert downstream is not None  # `train` has looked
        loss = loss + config.kl * downstream(site, outcome.x_hat / state.scale, batch)
    loss.backward()
    _update(config, state, number, deferred)
    state.silent = (state.silent + len(batch[site])).masked_fill(outcome.active, 0)
    if outcome.threshold is not None:
        kept = torch.stack([outcome.threshold.nan_to_num(posinf=0.0), torch.ones_like(outcome.threshold)])
        state.threshold = _MEMORY * state.threshold + (1 - _MEMORY) * kept
    state.lost = state.lost.masked_fill((state.lost < 0) & ~torch.isfinite(loss), number)
    return outcome


def _update(config: TrainConfig, state: SiteState, number: int, deferred: Deferred | None) -> None:
    """Step all weights by their gradients."""
    sae, rate = state.sae, config.rate(number, state.n_latents)
    weights = dict(sae.named_parameters())
    state.ranks.add_gradients(weights)
    sae.project_gradient()
    if config.clip:
        state.ranks.clip_gradients(weights, config.clip)
    for name, weight in weights.items():
        if weight.grad is not None and state.weights[name] is not weight:
            state.weights[name].grad, weight.grad = weight.grad.T, None
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.in_one_pass and deferred:
        state.in_one_pass.finish(deferred, rate, number + 1)
    else:
        sae.normalise()


def _in_one_pass(config: TrainConfig, state: SiteState, scratch: sparse.Scratch) -> LatentStep | None:
    """Where there are kernels, and a latent's gradient is wanted for nothing but its own step."""
    recipe, W_dec = config.recipe, state.sae.W_dec
    kernels = kernels_for(W_dec.device) if W_dec.dtype is torch.float32 else None
    fits = isinstance(recipe, TopK | BatchTopK | Matryoshka) and not getattr(recipe, "multi", 0)
    if kernels is None or not fits or config.clip or state.ranks.replicas > 1:
        return None
    return LatentStep(state.weights, state.optimizer, scratch.dtype or W_dec.dtype, kernels)


def _look(member: Member, outcomes: dict[Site, Outcome], step: int) -> None:
    """Find the dead latents; raise `UserError` where none is active any more."""
    config = member.config
    for site, state in member.sites.items():
        state.silent = state.ranks.least_of_replicas(state.silent)
        state.dead = (state.silent >= config.dead_after).nonzero().squeeze(-1)
        state.dead_elsewhere = sum(of_other_shards(state.ranks, len(state.dead)))
        if step > 4 * config.warm_up and outcomes[site].l0 == 0:
            raise UserError(
                f"training of {member.name} stopped at {site}, step {step}: no latent is active any more; "
                "likely the sparsity penalty or the learning rate is too high"
            )
