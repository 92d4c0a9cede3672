"""The feature whose circuit is drawn when none is named."""

from collections.abc import Mapping, Sequence

import torch

from circuits.features.atlas import FeatureAtlas, most_predictive, strongest_writer
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site, Stream

CLOSING_BRACKETS = (")", "]", "}")


def default_target(
    model: LanguageModel, dictionaries: Mapping[Site, Dictionary], atlas: FeatureAtlas, predict: Sequence[str] = ()
) -> FeatureId:
    """A feature of the last residual site that has a dictionary.

    The one that best predicts that one of the tokens `predict` comes next (`most_predictive`); where none of them
    stands in the text, the one with the largest direct effect on a logit (`strongest_writer`). Raises `UserError`
    without a residual site.
    """
    site = max((s for s in dictionaries if s.stream is Stream.RESID_POST), default=None)
    if site is None:
        raise UserError(f"circuits need a resid_post site; this set has {', '.join(map(str, dictionaries))}")
    next_tokens = [model.to_ids(text)[0] for text in predict]
    if torch.isin(atlas.contexts[:, 1:], torch.tensor(next_tokens, dtype=torch.long)).any():
        return most_predictive(model, dictionaries[site], site, atlas, next_tokens)
    return strongest_writer(model, dictionaries[site], site, atlas)
