"""Whether dictionaries find the features of a toy model in its hidden activations h = W x.

Here the truth is known: the directions W^_i of the represented features. A dictionary of as many latents as there are
features, TopK, reads activations of rows in which something is active, and is judged by

    mean over i of max_j W^_i . d_j,    and the share of i for which it is at least `FOUND`

beside random dictionaries of the same size, which in few dimensions come close as well. k is the number of represented
features that are active in a row with any, rounded. Features of one density, dense ones included, go through the same.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from editing.metrics import bootstrap_estimate, estimate_from, resampled
from sae_core.estimate import Estimate
from sae_core.outliers import NO_LIMITS, Limits
from sae_core.seeds import generator_for
from sae_core.sites import Site
from sae_core.training.config import TrainConfig
from sae_core.training.loop import start, train
from sae_core.training.state import TrainState
from sae_core.training.topk_recipes import TopK
from subrank.studies.toys.geometry import represented
from subrank.studies.toys.models import active_rows

FOUND = 0.95
"""Largest cosine from which on a feature counts as found."""
DICTIONARIES = 3
"""Trained on each toy model, from other weights."""
BATCH = 512
RANDOM = 200
"""Random dictionaries that chance is measured with."""
_HIDDEN = Site(0)


@dataclass(frozen=True)
class Recovery:
    """How well dictionaries find the represented features of a toy model."""

    density: float
    n_represented: int
    k: int
    """Latents active per row."""
    cosine: Estimate
    """Mean over represented features of the largest cosine, and over dictionaries; resampled over features."""
    chance: Estimate
    """The same of random dictionaries: their mean, and between what ends 95% of them lie."""
    found: float
    """Share of the represented features with a latent of a cosine of at least 0.95."""
    chance_found: float
    fvu: float
    """Of the last batch."""


@dataclass(frozen=True, eq=False)
class HiddenActivations:
    """h = W x of rows in which something is active, as training takes activations."""

    W: Tensor
    density: float
    seed: int
    batch: int = BATCH
    sites: tuple[Site, ...] = (_HIDDEN,)
    batches: int = 32
    """Per block."""

    def block(
        self, block: int, limits: Limits = NO_LIMITS, steps: int | None = None
    ) -> Iterator[Mapping[Site, Tensor]]:
        generator = generator_for(self.seed, "hidden activations", self.density, block)
        density = torch.tensor([self.density])
        for _ in range(self.batches):
            yield {_HIDDEN: active_rows(density, self.W.shape[1], self.batch, generator)[0] @ self.W.T}


def dictionaries_on(stream: HiddenActivations, steps: int) -> TrainState:
    """Untrained dictionaries for a toy model's activations."""
    m, n = stream.W.shape
    shape = {"expansion": math.ceil(n / m), "tokens": steps * BATCH, "batch": BATCH, "bfloat16": False}
    seeds = [(stream.seed + number) % 2**32 for number in range(DICTIONARIES)]
    recipe = TopK(latents_active(stream))
    return start(
        stream, *(TrainConfig(recipe, dead_after=32 * BATCH, seed=seed, **shape) for seed in seeds), outliers=0
    )


def latents_active(stream: HiddenActivations) -> int:
    """k: the mean number of represented features that are active where any is, rounded."""
    p, n = stream.density, max(1, len(represented(stream.W)))
    return max(1, round(p * n / (1 - (1 - p) ** n)))


def recovery(stream: HiddenActivations, steps: int) -> Recovery:
    """Train dictionaries on a toy model's activations, and compare them with the features that it represents."""
    state, fvus = dictionaries_on(stream, steps), []
    for step in train(stream, state):
        fvus = [outcomes[_HIDDEN].fvu for outcomes in step.outcomes]
    truth = F.normalize(stream.W[:, represented(stream.W)], dim=0).T
    directions = torch.stack([member.sites[_HIDDEN].sae.directions.detach() for member in state.members])
    generator = generator_for(stream.seed, "random dictionaries", stream.density)
    random = F.normalize(torch.randn(RANDOM, *directions.shape[1:], generator=generator), dim=-1)
    largest, by_chance = ((truth @ each.mT).amax(-1) for each in (directions, random))  # [dictionary, feature]
    means = by_chance.mean(1)
    return Recovery(
        density=stream.density,
        n_represented=len(truth),
        k=latents_active(stream),
        cosine=bootstrap_estimate(largest.mean(0), resampled(range(len(truth)), stream.seed)),
        chance=estimate_from(means.mean().item(), means),
        found=(largest >= FOUND).float().mean().item(),
        chance_found=(by_chance >= FOUND).float().mean().item(),
        fvu=torch.stack(fvus).mean().item(),
    )


def dictionary_steps(stream: HiddenActivations, steps: int) -> Iterator[object]:
    """The steps of training dictionaries on a toy model, for their time."""
    yield from train(stream, dictionaries_on(stream, steps))
