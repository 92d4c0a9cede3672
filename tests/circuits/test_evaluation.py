"""A circuit evaluated: stages announced, repeated discovery, and JSON that reads back."""

import json
from dataclasses import replace

import pytest
import torch
from handmade import Circuit as Handmade
from tiny import user_error

from circuits.discovery.circuit import Circuit, circuit_of, circuit_steps, sufficient_features
from circuits.discovery.edges import EdgeConfig
from circuits.discovery.request import CircuitRequest, ResolvedRequest
from circuits.discovery.target_causes import CauseSearch, DiscoveryConfig
from circuits.evaluation import CircuitEvaluation, evaluate_circuit
from circuits.features.atlas import FeatureAtlas, survey
from circuits.graph import FeatureGraph
from sae_core.dictionaries.baselines import Basis
from sae_core.sites import FeatureId, Site


@pytest.fixture(scope="module")
def handmade() -> Handmade:
    """With a complete dictionary at every layer, in which latent i is feature i."""
    handmade = Handmade()
    handmade.dictionaries = {site: Basis(handmade.d, torch.zeros(12)) for site in handmade.model.sites()}
    return handmade


@pytest.fixture(scope="module")
def held(handmade) -> FeatureAtlas:
    atlas = survey(handmade.model, handmade.dictionaries, handmade.contexts(seed=5))
    sites = {site: replace(statistics, density=torch.ones(12)) for site, statistics in atlas.sites.items()}
    return replace(atlas, sites=sites)  # so that random circuits have latents to draw from


def resolved(handmade, **request) -> ResolvedRequest:
    atlas = survey(handmade.model, handmade.dictionaries, handmade.contexts())
    config = DiscoveryConfig(EdgeConfig(n_null=0, errors=False), max_targets=5)
    search = CauseSearch(handmade.model, handmade.dictionaries, atlas, config)
    target = search.feature(FeatureId(Site(3), 8))
    return ResolvedRequest(CircuitRequest(**request), search, target, None, None, atlas, prepend_bos=True)


@pytest.mark.slow
@pytest.mark.parametrize("n_nodes", [0, 4])
def test_the_planted_circuit_is_evaluated_and_read_back(handmade, held, n_nodes):
    question = resolved(handmade, n_nodes=n_nodes, cover=1)
    sufficient = sufficient_features(question)
    circuit = circuit_of(question, sufficient, list(circuit_steps(question, sufficient)))
    stages = []
    evaluation = evaluate_circuit(question, circuit, held, n_draws=2, on_progress=stages.append)
    assert [(stage.done, stage.total) for stage in stages] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    nearest = evaluation.reached[0]
    assert nearest.sites == ("resid_post.2",)
    assert nearest.n_members == 2 and nearest.faithfulness.value == pytest.approx(1, abs=1e-4)
    assert len(evaluation.scores) == len(evaluation.controls) == 2 and evaluation.moves.left_out == 0
    assert evaluation.stability.mean.edges == 1, "a linear circuit is the same on all examples"
    plain = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    again = CircuitEvaluation.from_json(plain)
    assert again.to_json() == plain and again.scores == evaluation.scores and again.moves == evaluation.moves
    assert plain["scores"][0]["ways"]["ablated"]["faithfulness"].keys() == {"value", "low", "high"}
    assert "\n".join(evaluation.lines()).count("faithfulness") > 5


def test_a_circuit_without_members_cannot_be_scored(handmade, held):
    question = resolved(handmade)
    with user_error("3_8", "no members"):
        evaluate_circuit(question, Circuit(FeatureGraph(question.target.node, (), ())), held)
