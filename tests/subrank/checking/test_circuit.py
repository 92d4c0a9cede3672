"""Edges and scores of circuits by full forward passes, on a tiny model; and faults are seen."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from checks import wrong
from handmade import random_topk
from planted import unchecked
from tiny import random_tokens

from circuits.discovery.circuit import circuit_of, circuit_steps
from circuits.discovery.edges import EdgeConfig, SearchMode
from circuits.discovery.request import CauseAblation, CircuitRequest, ResolvedRequest, resolve
from circuits.discovery.target_causes import DiscoveryConfig
from circuits.effects.target_prompts import TargetPrompts
from circuits.features.atlas import survey
from circuits.graph import FeatureGraph
from circuits.scoring.ablations import MeanAblation
from circuits.scoring.circuit_runs import CircuitRuns
from circuits.scoring.faithfulness import Scale, score_circuit
from sae_core.sites import Site
from subrank.checking.circuit import recomputed_edges, recomputed_score


class Searched:
    """Random dictionaries at every layer of a tiny model, and the circuit of a request."""

    def __init__(self, model):
        self.model = model
        self.dictionaries = {site: random_topk(32, 24, 4, seed=site.layer) for site in model.sites()}
        self.contexts = random_tokens(model.n_vocab, 12, 7)
        self.contexts[:, 0] = model.bos_id
        self.atlas = survey(model, self.dictionaries, self.contexts)
        self.loudest = f"2_{int(self.atlas.sites[Site(2)].density.argmax())}"

    def resolved(self, target: str, ablation=CauseAblation.ZERO, mode=SearchMode.SCREENED) -> ResolvedRequest:
        edges = EdgeConfig(2, n_null=0, search=mode, described=False)
        config = DiscoveryConfig(edges, n_examples=4, min_examples=2, max_targets=2)
        text = SimpleNamespace(dictionaries=self.dictionaries, text=SimpleNamespace(prepend_bos=True))
        return resolve(self.model, text, self.atlas, CircuitRequest(target, ablation=ablation), config)

    def graph(self, resolved: ResolvedRequest) -> FeatureGraph:
        return circuit_of(resolved, [], list(circuit_steps(resolved))).graph


@pytest.fixture(scope="module")
def searched(tiny_models) -> Searched:
    with unchecked():
        return Searched(tiny_models["neox"])


@pytest.mark.parametrize(
    ("target", "ablation"),
    [(None, CauseAblation.ZERO), ("logit: she - he", CauseAblation.MEAN), ("logit: she", CauseAblation.RESAMPLE)],
)
def test_every_edge_agrees_and_a_wrong_one_is_named(searched, target, ablation):
    with unchecked():
        resolved = searched.resolved(target or searched.loudest, ablation)
        graph = searched.graph(resolved)
        first, *others = graph.edges
        faulty = replace(graph, edges=(replace(first, effect=first.effect * 1.001 + 1e-5), *others))
        numbers = recomputed_edges(resolved, faulty, seed=0)
    assert len(numbers) == len(graph.edges) >= 3 and wrong(numbers) == [f"edge {first.cause} -> {first.target}"]


def test_edges_of_other_dictionaries_disagree_and_estimates_are_not_computed_again(searched):
    with unchecked():
        resolved = searched.resolved(searched.loudest)
        graph = searched.graph(resolved)
        other = {site: random_topk(32, 24, 4, seed=site.layer) for site in searched.dictionaries}
        for dictionary in other.values():
            dictionary.b_enc.data[::3] += 0.1
        assert wrong(recomputed_edges(replace(resolved, search=replace(resolved.search, dictionaries=other)), graph, 0))
        estimated = searched.resolved(searched.loudest, mode=SearchMode.FIRST_ORDER)
        assert recomputed_edges(estimated, searched.graph(estimated), seed=0) == []


def test_the_score_agrees_and_a_wrong_one_is_named(searched):
    with unchecked():
        resolved = searched.resolved(searched.loudest)
        search, target = resolved.search, resolved.target
        prompts = TargetPrompts(target, searched.atlas.examples(target.node, 4))
        covered = {site: d for site, d in searched.dictionaries.items() if site.layer < 2}
        means = MeanAblation.over_text(searched.model, covered, searched.contexts)
        runs = CircuitRuns(searched.model, covered, target, prompts.examples, means)
        often = {site: searched.atlas.sites[site].density.argsort(descending=True)[:8].tolist() for site in covered}
        score = score_circuit(Scale(runs), often)
        faulty = replace(score, m_nothing=score.m_nothing + 1e-3)
        numbers = recomputed_score(search, prompts, searched.contexts, faulty)
        assert wrong(numbers) == [numbers[1].what] and [number.what for number in numbers][2] == "faithfulness"
        fewer = recomputed_score(search, prompts, searched.contexts[:6], score)
        assert {numbers[1].what, "faithfulness"} <= {*wrong(fewer)}, "means of half of the text are others"
