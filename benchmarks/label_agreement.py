"""Agreement of features with given labels of tokens: F1, the threshold and the label being chosen on other text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuits.features.verification import best_thresholds
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
            f1, threshold = best_thresholds(f[even], has_label[:, even], has_label[:, even].sum(1))
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
