"""What `features --check` computes again of a few full cards drawn at random, a training context at a time.

Over the content tokens, f_j = encode(x)_j of the recorded activations: density (share with f_j not 0), the mean where
it is not 0, and the maximum. And, where the last residual is one of the set's sites, the effects on the logits: with m
the mean of the residual after the last block,

    z(m + mean f_j d_j) - z(m),    less its mean over the vocabulary: the largest and the smallest.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from circuits.features.card import Card
from circuits.features.catalogue import Catalogue
from sae_core.sites import FeatureId, Stream
from subrank.checking.plain_runs import activations
from subrank.checking.recomputed import Recomputed, drawn

CARDS = 3
ADDING = (Stream.RESID_POST, Stream.RESID_MID, Stream.MLP_OUT, Stream.ATTN_OUT)
"""Streams whose directions are written to the residual as they are."""


@torch.no_grad()
def recomputed(catalogue: Catalogue, cards: Sequence[Card], seed: int) -> list[Recomputed]:
    """Density, mean, maximum and logit effects of `CARDS` of the cards."""
    model, dictionaries = catalogue.model, catalogue.dictionaries
    chosen, last = drawn(cards, CARDS, seed), model.sites()[-1]
    values: dict[FeatureId, list[float]] = {card.feature: [] for card in chosen}
    total, n = torch.zeros(model.d_model, dtype=torch.float64, device=model.device), 0
    for tokens in catalogue.training:
        content = model.content(tokens)
        recorded = activations(model, tokens, {last, *(card.feature.site for card in chosen)})
        total, n = total + recorded[last][content].double().sum(0), n + int(content.sum())
        for feature, column in values.items():
            column += dictionaries[feature.site].encode(recorded[feature.site])[content, feature.index].tolist()
    numbers = []
    for card in chosen:
        active = [value for value in values[card.feature] if value]
        strength = sum(active) / len(active)
        numbers += [
            Recomputed(f"density of {card.feature}", card.density, len(active) / n),
            Recomputed(f"mean activation of {card.feature}", card.mean_active, strength),
            Recomputed(f"maximum of {card.feature}", card.max, max(active)),
        ]
        if last in dictionaries and card.feature.site.stream in ADDING:
            direction = dictionaries[card.feature.site].directions[card.feature.index].double()
            numbers += _effects(catalogue, card, total / n, strength * direction)
    return numbers


def _effects(catalogue: Catalogue, card: Card, center: Tensor, added: Tensor) -> list[Recomputed]:
    """The largest rise and the largest fall of a logit."""
    before, after = (catalogue.model.unembed(h.float()).double() for h in (center, center + added))
    moved = after - before - (after - before).mean()
    ends = (("rise", card.promotes, moved.max()), ("fall", card.suppresses, moved.min()))
    return [
        Recomputed(f"largest {what} of a logit by {card.feature}", tokens[0][1], float(value))
        for what, tokens, value in ends
    ]
