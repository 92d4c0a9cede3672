"""What a reconstruction costs the model's prediction, and how much training such a loss stands for.

    rise       = CE(x_hat in place of x) - CE                             nats per token
    recovered  = (CE(0 in place of x) - CE(x_hat)) / (CE(0) - CE)
    compute    = C(CE(x_hat)) / C(CE),   C the compute at which a family of models reaches a loss

Gao et al. 2024, section 4.1. C is read off a ladder of models of that family (log C linear in the loss between two
neighbours) and not known outside of it. The control is PCA with as many components as the dictionary has active
latents. Cost: a forward pass above the site for each dictionary, control and ablation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.edited_contexts import EditedContexts
from editing.loss_recovered import Splice
from editing.metrics import estimate_from, resampled
from sae_core.codec import from_plain
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.estimate import Estimate
from sae_core.files import parse_json, read_text, user_path
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import inliers
from sae_core.sites import Site
from subrank.studies.metrics.reading import AT_ONCE


@dataclass(frozen=True)
class Rung:
    """A model of the family."""

    loss: float
    """Its cross-entropy on this text, nats per token."""
    compute: float
    """What its training took, in any unit."""


Ladder = Sequence[Rung]


def read_ladder(path: Path) -> Ladder:
    """The ladder in a JSON file, the largest loss first; raises `UserError` unless more compute means less loss."""
    path = user_path(path)
    rows = parse_json(read_text(path), path)
    try:
        rungs = [from_plain(Rung, row, exact=True) for row in (rows if isinstance(rows, list) else [rows])]
    except UserError as error:
        shape = '[{"loss": 4.1, "compute": 1e18}, ...]'
        raise UserError(f"{path} is no ladder of models: {error}; give a JSON list such as {shape}") from error
    rungs.sort(key=lambda rung: rung.compute)
    falling = all(low.compute < high.compute and low.loss > high.loss for low, high in pairwise(rungs))
    if len(rungs) < 2 or not falling or not all(rung.compute > 0 for rung in rungs):
        raise UserError(f"{path} needs two models or more, of positive compute, the loss of each below those of less")
    return rungs


def equivalent_compute(loss: float, ladder: Ladder) -> float:
    """The compute at which the ladder's family reaches a loss; NaN outside of the ladder."""
    rungs = sorted(ladder, key=lambda rung: rung.loss)
    losses, logs = [rung.loss for rung in rungs], [math.log(rung.compute) for rung in rungs]
    return float(np.exp(np.interp(loss, losses, logs, left=math.nan, right=math.nan)))


@dataclass(frozen=True, eq=False)
class Losses:
    """-log p summed over the scored tokens of each context, without and with edits of one site."""

    scored: Float[Tensor, "contexts"]
    original: Float[Tensor, "contexts"]
    zeroed: Float[Tensor, "contexts"]
    spliced: dict[str, Float[Tensor, "contexts"]]
    weights: Float[Tensor, "resamples contexts"]

    def rise(self, name: str) -> Estimate:
        """By how much the reconstruction of that name raises the loss."""
        return self._ratio(self.spliced[name] - self.original, self.scored)

    def recovered(self, name: str) -> Estimate:
        """The loss that it recovers."""
        return self._ratio(self.zeroed - self.spliced[name], self.zeroed - self.original)

    def compute(self, name: str, ladder: Ladder) -> Estimate:
        """The share of compute; the interval is that of the rise, the model's loss taken as known."""
        whole, rise = (self.original.sum() / self.scored.sum()).item(), self.rise(name)
        ends = (equivalent_compute(whole + each, ladder) for each in (rise.value, rise.high, rise.low))
        return Estimate(*(each / equivalent_compute(whole, ladder) for each in ends))

    def _ratio(self, above: Tensor, below: Tensor) -> Estimate:
        return estimate_from((above.sum() / below.sum()).item(), (self.weights @ above) / (self.weights @ below))


@torch.no_grad()
def spliced_losses(
    model: LanguageModel,
    site: Site,
    named: Mapping[str, Dictionary],
    tokens: Int[Tensor, "contexts pos"],
    limit: float,
) -> Losses:
    """The losses with each dictionary of a site spliced in alone; tokens of a norm above `limit` are left alone."""
    sums = []
    for few in tokens.split(model.at_once(AT_ONCE)):
        chunk = EditedContexts(model, few, [site])
        inside = chunk.mask & inliers(model.record(few[:, :-1], [site])[site], limit)
        edits = [chunk.constant(site, limit), *(Splice(site, each, inside) for each in named.values())]
        losses = torch.cat([chunk.original, chunk.costs(edits)])
        context = chunk.scored.nonzero()[:, 0].cpu()
        every = torch.cat([torch.ones_like(losses[:1]), losses])
        sums.append(torch.zeros(len(every), len(few), dtype=torch.float64).index_add_(1, context, every))
    scored, original, zeroed, *spliced = torch.cat(sums, 1)
    return Losses(scored, original, zeroed, dict(zip(named, spliced, strict=True)), resampled(range(len(tokens)), 0))
