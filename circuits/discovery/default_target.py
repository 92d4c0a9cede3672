"""The feature whose circuit is drawn where none is named: by default, or for what it predicts ("next: )")."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuits.features.atlas import FeatureAtlas, most_predictive, strongest_writer
from circuits.features.predicates import next_token_ids
from circuits.features.reading import Piece
from circuits.features.survey import Survey
from circuits.features.verification import best_thresholds
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site, Stream

CLOSING_BRACKETS = (")", "]", "}")
READ = 256
"""Contexts on which features are compared as predictors of the next token, at most."""


def last_residual(dictionaries: Mapping[Site, Dictionary]) -> Site:
    """The last residual site that has a dictionary; raises `UserError` without one."""
    site = max((s for s in dictionaries if s.stream is Stream.RESID_POST), default=None)
    if site is None:
        raise UserError(f"circuits need a resid_post site; this set has {', '.join(map(str, dictionaries))}")
    return site


def default_target(
    model: LanguageModel, dictionaries: Mapping[Site, Dictionary], atlas: FeatureAtlas, predict: Sequence[str] = ()
) -> FeatureId:
    """A feature of the last residual site that has a dictionary.

    The one that best predicts that one of the tokens `predict` comes next (`most_predictive`); where none of them
    stands in the text, the one with the largest direct effect on a logit (`strongest_writer`). Raises `UserError`
    without a residual site.
    """
    site = last_residual(dictionaries)
    next_tokens = [model.to_ids(text)[0] for text in predict]
    if torch.isin(atlas.contexts[:, 1:], torch.tensor(next_tokens, dtype=torch.long)).any():
        return most_predictive(atlas, site, next_tokens)
    return strongest_writer(model, dictionaries[site], site, atlas)


def next_token_target(
    model: LanguageModel, dictionaries: Mapping[Site, Dictionary], atlas: FeatureAtlas, beginning: str
) -> FeatureId:
    """The feature of the last residual site that best tells, by F1 at its best threshold, that `beginning` comes next.

    Never one of a sink. Raises `UserError` where the text has no such token, or no feature is active before one.
    """
    site, ids = last_residual(dictionaries), next_token_ids(model, beginning)
    contexts, allowed = atlas.contexts[:READ], ~atlas.sites[last_residual(dictionaries)].sinks
    latent = best_predictor(atlas.survey, site, contexts, ids, allowed)
    if latent is None:
        raise UserError(
            f"{beginning!r} never comes next after a feature of {site} in {len(contexts)} contexts of this text, so "
            "none can be chosen that predicts it; give another token or more text"
        )
    return FeatureId(site, latent)


def check_next_token(model: LanguageModel, dictionaries: Mapping[Site, Dictionary], beginning: str) -> None:
    """Raise `UserError` where `next_token_target` could choose none, whatever the text."""
    last_residual(dictionaries)
    if not next_token_ids(model, beginning):
        raise UserError(f"no token of {model.name} is {beginning!r}; give the text of one token")


def best_predictor(
    survey: Survey,
    site: Site,
    contexts: Int[Tensor, "contexts pos"],
    next_ids: Sequence[int],
    allowed: Bool[Tensor, "n_latents"],
) -> int | None:
    """The allowed latent of largest F1, at its best threshold, as a sign that one of `next_ids` comes next.

    None where no allowed latent is active before one.
    """
    latents, values, truths, n_true = [], [], [], torch.zeros(1, dtype=torch.long)
    wanted = torch.tensor(list(next_ids), dtype=torch.long)

    def add(_: Site, piece: Piece) -> None:
        content = piece.content[:, :-1].cpu()
        comes = torch.isin(piece.tokens[:, 1:].cpu(), wanted)[content]
        f = piece.f[:, :-1].cpu()[content]
        row, latent = (f * allowed > 0).nonzero(as_tuple=True)
        latents.append(latent)
        values.append(f[row, latent])
        truths.append(comes[row])
        n_true.add_(int(comes.sum()))

    survey.read(contexts, add, sites=[site])
    latent, order = torch.cat(latents).sort(stable=True)
    if not torch.cat(truths).any():
        return None
    numbers, counts = latent.unique_consecutive(return_counts=True)
    groups = (torch.cat(parts)[order].split(counts.tolist()) for parts in (values, truths))
    f1 = [best_thresholds(value, truth[None], n_true)[0] for value, truth in zip(*groups, strict=True)]
    return int(numbers[torch.cat(f1).argmax()])
