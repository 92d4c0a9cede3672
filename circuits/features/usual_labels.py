"""Labels for all features of a set at once, from the predicates that are tried on every feature.

As `labelling.py`, but with "active" for "above a threshold", and one other feature of the site as the control: then all
F1 follow from how often each predicate is true where each latent is active,

    hits = T A,    T [predicates, tokens] the truths, A [tokens, n_latents] where latents are active,

one product of matrices for each site.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.feature_label import FeatureLabel
from circuits.features.label_predicates import LabelText, Usual
from circuits.features.reading import Piece
from circuits.features.survey import Survey
from circuits.features.verification import LEAST
from sae_core.sites import Site

WORK = 1e11
"""Multiplications at most."""
_READ = 2**15
"""Tokens of each text that are read, at most."""


def usual_labels(
    survey: Survey,
    training: Int[Tensor, "contexts pos"],
    held: Int[Tensor, "held pos"],
    partner: Mapping[Site, Int[Tensor, "n_latents"]],
) -> dict[Site, list[FeatureLabel]]:
    """For each latent the best predicate on `training`, scored on `held`, there also on latent `partner`.

    Nothing where the set is so large that it would take more than `WORK`.
    """
    most = max(1, _READ // training.shape[1])
    texts = [LabelText(survey.model, text[:most]) for text in (training, held)]
    n_latents = sum(len(dictionary.directions) for dictionary in survey.dictionaries.values())
    if n_latents * sum(text.table.numel() for text in texts) > WORK:
        return {}
    chosen_on, scored_on = (_f1(survey, text) for text in texts)
    often = torch.tensor([[n >= LEAST] for n in texts[0].n_true.values()])
    words = [Usual(name).text(survey.model) for name in texts[0].truths]
    labels = {}
    for site, f1 in chosen_on.items():
        best = (f1 * often).argmax(0)
        score, control = (scored_on[site][best, of] for of in (torch.arange(len(best)), partner[site]))
        numbers = zip(best.tolist(), score.tolist(), control.tolist(), strict=True)
        labels[site] = [FeatureLabel(words[i], "", value, other) for i, value, other in numbers]
    return labels


def _f1(survey: Survey, text: LabelText) -> dict[Site, Float[Tensor, "predicates n_latents"]]:
    """F1 of "the latent is active" and each predicate."""
    # truths [predicates, tokens] @ active [tokens, n_latents], a piece of the text at a time
    truths, length = text.table.float(), text.contexts.shape[1]
    hits = {site: torch.zeros(len(truths), len(d.directions)) for site, d in survey.dictionaries.items()}
    n_active = {site: torch.zeros(len(d.directions)) for site, d in survey.dictionaries.items()}

    def add(site: Site, piece: Piece) -> None:
        active = (piece.f.flatten(0, 1) != 0).float().cpu()
        start = piece.start * length
        hits[site] += truths[:, start : start + len(active)] @ active
        n_active[site] += active.sum(0)

    survey.read(text.contexts, add)
    n_true = truths.sum(1, keepdim=True)
    return {site: 2 * right / (n_active[site] + n_true).clamp_min(1) for site, right in hits.items()}
