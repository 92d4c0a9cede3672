"""Which predicate of the text a feature is, by F1.

    F1 = 2 hits / (tokens on which the feature is above its threshold + tokens on which the predicate is true)

The threshold and the predicate are chosen on every second context, and F1 is that on the others. The control
is the same choice for the feature's activations on other contexts, position by position: what density and position
alone give.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.features.predicates import next_predicate, predicates
from circuits.features.survey import Survey
from sae_core.sites import FeatureId

LEAST = 8
"""Tokens on which a predicate must be true in each half to be considered."""


@dataclass(frozen=True)
class Claim:
    """What a feature says of the text, and how well it does."""

    feature: FeatureId
    predicate: str
    """`inside (`, `next: )`, ...: the best on the half on which it was chosen."""
    f1: float
    """On the other half."""
    control: float
    """F1 of the best predicate of the feature's activations on other contexts."""

    def line(self) -> str:
        """The same in words."""
        return f'{self.feature} is "{self.predicate}" with F1 {self.f1:.2f} (control {self.control:.2f})'


def verify(
    survey: Survey,
    features: Sequence[FeatureId],
    contexts: Int[Tensor, "contexts pos"],
    claimed: Mapping[FeatureId, str] | None = None,
) -> list[Claim]:
    """For each feature the predicate that it is nearest to; that of `claimed`, where it names one ("next: )").

    Without features that are silent on the half of the contexts on which predicates are chosen.
    """
    claimed, model = claimed or {}, survey.model
    truths = predicates(model, contexts, [name.removeprefix(next_predicate("")) for name in claimed.values()])
    content, chosen, other = model.content(contexts), slice(0, None, 2), slice(1, None, 2)
    often = {n: t for n, t in truths.items() if min(int(t[chosen].sum()), int(t[other].sum())) >= LEAST}
    if not features or not often:
        return []
    seen = survey.activations(list(features), contexts)
    claims = []
    for feature in features:
        names = [claimed[feature]] if claimed.get(feature) in often else list(often)
        table = torch.stack([often[name] for name in names])
        best = [_chosen_and_scored(f, table, content, chosen, other) for f in (seen[feature], seen[feature].roll(1, 0))]
        if best[0] is not None:
            claims.append(Claim(feature, names[best[0][0]], best[0][1], best[1][1] if best[1] else 0.0))
    return claims


def _chosen_and_scored(
    f: Float[Tensor, "contexts pos"],
    table: Bool[Tensor, "predicates contexts pos"],
    content: Bool[Tensor, "contexts pos"],
    chosen: slice,
    other: slice,
) -> tuple[int, float] | None:
    """(The best predicate on the contexts `chosen`, its F1 on the `other` ones); None where f is silent."""
    truths = table[:, chosen][:, content[chosen]]
    f1, threshold = best_thresholds(f[chosen][content[chosen]], truths, truths.sum(1))
    if not f1.max() > 0:
        return None
    best = int(f1.argmax())
    active, truth = f[other][content[other]] > threshold[best], table[best, other][content[other]]
    return best, 2 * int((active & truth).sum()) / max(1, int(active.sum()) + int(truth.sum()))


def best_thresholds(
    f: Float[Tensor, "tokens"],
    truths: Bool[Tensor, "predicates tokens"],
    n_true: Int[Tensor, "predicates"],
    share: float = 0.0,
) -> tuple[Float[Tensor, "predicates"], Float[Tensor, "predicates"]]:
    """For each predicate the largest F1 of "f is above a threshold", and that threshold, zero or more.

    Predicates are true on `n_true` tokens in all; tokens on which f is zero may be left out. Tokens above the threshold
    carry at least `share` of the sum of f.
    """
    # Tokens by falling activation: a threshold below the m-th predicts the first m, with hits_m of them right, and
    # F1 = 2 hits_m / (m + n_true). Equal activations fall on one side of a threshold: only the last of them counts.
    order = f.argsort(descending=True, stable=True)
    order = order[f[order] > 0]
    if not len(order):
        return torch.zeros(len(truths)), torch.zeros(len(truths))
    last = torch.cat([f[order][:-1] != f[order][1:], torch.ones(1, dtype=torch.bool)])
    f1 = 2 * truths[:, order].cumsum(1).double() / (torch.arange(1, len(order) + 1) + n_true[:, None])
    carried = f[order].double().cumsum(0)
    value, place = f1.masked_fill(~last | (carried < share * carried[-1]), -1).max(1)
    below = torch.cat([f[order], torch.zeros(1)])[place + 1]
    return value.float(), (f[order][place] + below) / 2
