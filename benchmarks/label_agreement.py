"""Agreement of features with given labels of tokens: F1, the threshold and the label being chosen on other text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site


@dataclass(frozen=True)
class LabelAgreement:
    """A feature and the label that its activations fit best."""

    feature: FeatureId
    label: str
    threshold: float
    """The feature predicts the label where its activation is above this."""
    f1: float
    """On the documents that chose neither label nor threshold, like `precision` and `recall`."""
    precision: float
    recall: float


@torch.no_grad()
def agreements(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    features: Sequence[FeatureId],
    tokens: Int[Tensor, "documents pos"],
    labels: Mapping[str, Bool[Tensor, "documents pos"]],
) -> list[LabelAgreement]:
    """For each feature its best label; even documents choose label and threshold, F1 is measured on odd ones.

    F1 = 2 precision recall / (precision + recall), over content tokens; 0 where nothing is predicted or labelled.
    Raises `UserError` for fewer than two documents.
    """
    from sklearn.metrics import precision_recall_fscore_support

    if len(tokens) < 2:
        raise UserError("half of the documents choose a label and the other half are measured; give at least two")
    sites = sorted({feature.site for feature in features})
    content = model.content(tokens)
    names = list(labels)
    has_label = torch.stack([labels[name][content] for name in names])
    even = (torch.arange(len(tokens)) % 2 == 0)[:, None].expand_as(tokens)[content]
    active: dict[Site, list[Tensor]] = {site: [] for site in sites}
    latents = {site: [feature.index for feature in features if feature.site == site] for site in sites}
    for rows, mask in zip(tokens.split(16), content.split(16), strict=True):
        for site, h in model.record(rows, sites).items():
            active[site].append(dictionaries[site].encode(h[mask.to(h.device)])[:, latents[site]].cpu())
    agreement = {}
    for site in sites:
        for index, f in zip(latents[site], torch.cat(active[site]).T, strict=True):
            f1, threshold = _best(f[even], has_label[:, even])
            best = int(f1.argmax())
            precision, recall, f1, _ = precision_recall_fscore_support(
                has_label[best, ~even],
                f[~even] > threshold[best],
                average="binary",
                zero_division=0.0,  # pyright: ignore[reportArgumentType]
            )
            feature, scores = FeatureId(site, index), (float(f1), float(precision), float(recall))
            agreement[feature] = LabelAgreement(feature, names[best], float(threshold[best]), *scores)
    return [agreement[feature] for feature in features]


def _best(
    f: Float[Tensor, "tokens"], has_label: Bool[Tensor, "labels tokens"]
) -> tuple[Float[Tensor, "labels"], Float[Tensor, "labels"]]:
    """The largest F1 that a threshold reaches, and that threshold, for each label."""
    # Tokens by falling activation: a threshold below the m-th predicts the first m, with hits_m of them right, and
    # F1 = 2 hits_m / (m + labelled). Equal activations fall on one side of a threshold: only the last of them counts.
    order = f.argsort(descending=True)
    order = order[f[order] > 0]
    if not len(order):
        return torch.zeros(len(has_label)), torch.zeros(len(has_label))
    last = torch.cat([f[order][:-1] != f[order][1:], torch.ones(1, dtype=torch.bool)])
    hits = has_label[:, order].cumsum(1).double()
    f1 = 2 * hits / (torch.arange(1, len(order) + 1) + has_label.sum(1, keepdim=True))
    value, place = f1.masked_fill(~last, -1).max(1)
    below = torch.cat([f[order], torch.zeros(1)])[place + 1]
    return value.float(), (f[order][place] + below) / 2
