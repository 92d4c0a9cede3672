"""The feature that is steered with by default: its effect is what algebra says of a linear model."""

import pytest
import torch

from editing.steering.choosing import LEAST_HARM, N_TOKENS, TRIED_AT, effect_of, most_effective
from editing.steering.edits import Mode, Steering
from sae_core.dictionaries.baselines import Rectified
from sae_core.sites import FeatureId, Site

SITE = Site(0)


def test_the_effect_of_scaling_is_the_rise_of_its_tokens_as_nothing_else_moves(toy):
    contexts = toy.text.contexts[:8]
    embedding, d, h = toy.model.embedding, toy.dictionaries[SITE].directions[0], toy.model.embedding[contexts]
    f = (h @ d).clamp_min(0) * toy.model.content(contexts)
    places = f > 0

    def probabilities(strength: float) -> torch.Tensor:
        change = (strength - 1) * f[places][:, None] * d
        return ((h[places] + change) @ embedding.T).softmax(-1)

    tokens = (probabilities(1.0) - probabilities(0.0)).mean(0).topk(N_TOKENS).indices
    rise = (probabilities(TRIED_AT[Mode.SCALE]) - probabilities(1.0))[:, tokens].sum(-1).mean()
    steering = Steering(toy.dictionaries, toy.text, Mode.SCALE)
    assert effect_of(toy.model, steering) == pytest.approx(float(rise) / LEAST_HARM, rel=1e-3)


@pytest.mark.parametrize("mode", Mode)
def test_the_candidate_with_the_largest_effect_is_chosen_and_never_a_silent_one(toy, mode):
    """Control: alone, any of them is."""
    directions = toy.dictionaries[SITE].directions
    silent = torch.zeros(64)
    silent[3] = -1e6
    dictionaries = {SITE: Rectified(directions, silent)}
    candidates = [FeatureId(SITE, j) for j in (3, 0, 1, 2)]
    contexts = toy.text.contexts

    def chosen(among: list[FeatureId]) -> FeatureId:
        return most_effective(toy.model, dictionaries, among, contexts, mode)

    best = chosen(candidates)
    assert best != candidates[0] and all(chosen([candidate]) == candidate for candidate in candidates)
    assert all(chosen([other, best]) == chosen([best, other]) == best for other in candidates if other != best)
