"""The greedy search: each step against a plain loop."""

import pytest
from editing.removal.feature_search import choose_features, standardised_gap
from handmade import random_topk
from removal_world import MIDDLE

from editing.interventions.patch import ablate


@pytest.mark.slow
def test_each_step_of_the_search_is_the_best_of_a_plain_loop(runs_at_middle, text, components):
    """Every candidate ablated on every prompt, in full; prompts on which one is silent make no difference."""
    few, sae = runs_at_middle.first(16), random_topk(128)
    chosen = choose_features(few, sae, text, 10.0, shortlist=48, most=3)

    def apart(features: list[int]) -> float:
        scores = few.scores(few.change(ablate(MIDDLE, sae, features))[None])
        return standardised_gap(scores, few.prompts).item()

    for step in range(len(chosen)):
        trials = {j: apart([*chosen[:step], j]) for j in range(48) if j not in chosen[:step]}
        assert trials[chosen[step]] == pytest.approx(min(trials.values()), abs=1e-4)
    assert len(chosen) >= 1
