"""How well features agree with labels that somebody else gave: F1, with threshold and label chosen on other text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site


@dataclass(frozen=True)
class Agreement:
    """A feature and the label that its activations fit best."""

    feature: FeatureId
    label: str
    threshold: float
    """Active means above this."""
    f1: float
    """On the half of the text that chose neither label nor threshold."""
    precision: float
    recall: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        numbers = {name: getattr(self, name) for name in ("threshold", "f1", "precision", "recall")}
        return {"feature": str(self.feature), "label": self.label} | numbers


@torch.no_grad()
def agreements(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    features: Sequence[FeatureId],
    tokens: Int[Tensor, "documents pos"],
    labels: Mapping[str, Bool[Tensor, "documents pos"]],
) -> list[Agreement]:
    """For each feature its best label; the even documents choose, the odd ones are measured.

    A feature says that a token has a label where its activation is above a threshold:
    F1 = 2 precision recall / (precision + recall). Raises `UserError` for fewer than two documents.
    """
    if len(tokens) < 2:
        raise UserError("one half of the documents chooses and the other is measured; give at least two")
    sites = sorted({feature.site for feature in features})
    content = model.content(tokens)
    names = list(labels)
    said = torch.stack([labels[name][content] for name in names])
    even = (torch.arange(len(tokens)) % 2 == 0)[:, None].expand_as(tokens)[content]
    active: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for rows, mask in zip(tokens.split(16), content.split(16), strict=True):
        for site, h in model.record(rows, sites).items():
            own = [feature.index for feature in features if feature.site == site]
            active[site].append(dictionaries[site].encode(h[mask.to(h.device)])[:, own].cpu())
    found = {}
    for site in sites:
        own = [feature for feature in features if feature.site == site]
        for feature, f in zip(own, torch.cat(active[site]).T, strict=True):
            f1, threshold = _best(f[even], said[:, even])
            best = int(f1.argmax())
            scores = _scores(f[~even] > threshold[best], said[best, ~even])
            found[feature] = Agreement(feature, names[best], float(threshold[best]), *scores)
    return [found[feature] for feature in features]


def _best(
    f: Float[Tensor, "tokens"], said: Bool[Tensor, "labels tokens"]
) -> tuple[Float[Tensor, "labels"], Float[Tensor, "labels"]]:
    """The largest F1 that a threshold reaches, and that threshold, for each label."""
    order = f.argsort(descending=True)
    order = order[f[order] > 0]
    if not len(order):
        return torch.zeros(len(said)), torch.zeros(len(said))
    last = torch.cat([f[order][:-1] != f[order][1:], torch.ones(1, dtype=torch.bool)])  # ties fall on one side
    hits = said[:, order].cumsum(1).double()
    f1 = 2 * hits / (torch.arange(1, len(order) + 1) + said.sum(1, keepdim=True))
    value, place = f1.masked_fill(~last, -1).max(1)
    below = torch.cat([f[order], torch.zeros(1)])[place + 1]
    return value.float(), (f[order][place] + below) / 2


def _scores(on: Bool[Tensor, "tokens"], said: Bool[Tensor, "tokens"]) -> tuple[float, float, float]:
    """F1, precision and recall; 0 where there is nothing to be right about."""
    hits, claimed, true = (float(x.sum()) for x in (on & said, on, said))
    return (
        2 * hits / (claimed + true) if claimed + true else 0.0,
        hits / claimed if claimed else 0.0,
        hits / true if true else 0.0,
    )
