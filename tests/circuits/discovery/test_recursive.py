"""From a target to its circuit: planted circuits come back edge by edge."""

import json
from dataclasses import replace

import networkx
import pytest
import torch
from handmade import Circuit, Clean, feature, number, random_topk
from tiny import random_tokens, user_error

from circuits.discovery.assembly import assemble
from circuits.discovery.edges import EdgeConfig, SearchMode
from circuits.discovery.recursive import discover
from circuits.discovery.target_causes import (
    CauseSearch,
    DiscoveryConfig,
    Reach,
    TargetCauses,
    cause_sites,
)
from circuits.effects.targets import FeatureTarget
from circuits.features.atlas import (
    FeatureAtlas,
    survey,
)
from circuits.graph import FeatureGraph
from sae_core.codec import from_plain, to_plain
from sae_core.sites import FeatureId, Site

TARGET = feature(8)


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return Circuit()


@pytest.fixture(scope="module")
def atlas(circuit) -> FeatureAtlas:
    return survey(circuit.model, circuit.dictionaries, circuit.contexts())


def configured(**config) -> DiscoveryConfig:
    """A small configuration; of `config`, what edges are about goes to theirs."""
    of_edges = {name: config.pop(name) for name in list(config) if name in EdgeConfig.__dataclass_fields__}
    return DiscoveryConfig(EdgeConfig(**({"n_null": 20} | of_edges)), **config)


def search(model, dictionaries, atlas, target: FeatureId, **config) -> list[TargetCauses]:
    root = FeatureTarget(target, dictionaries[target.site])
    return list(discover(CauseSearch(model, dictionaries, atlas, configured(**config)), root))


def planted(circuit, atlas, target: FeatureId = TARGET, **config) -> list[TargetCauses]:
    return search(circuit.model, circuit.dictionaries, atlas, target, **config)


def test_the_planted_circuit_comes_back_edge_by_edge(circuit, atlas):
    """All planted edges but the one of 0.001, none besides, each as large as by hand on its target's examples."""
    steps = planted(circuit, atlas)
    edges = {(number(e.cause), number(e.target)) for step in steps for e in step.edges}
    assert edges == {(0, 4), (1, 4), (2, 5), (4, 6), (5, 6), (4, 7), (6, 8), (7, 8)}
    for step in steps:
        examples = atlas.examples(step.target, 16)
        assert step.n_examples == len(examples) >= 16
        for edge in step.edges:
            expected = circuit.effect(number(edge.cause), number(edge.target), examples.tokens, examples.end)
            assert edge.effect == pytest.approx(expected, abs=1e-5)
            assert edge.target == step.target and edge.n_examples == len(examples)
            assert edge.n_active == len(examples) and abs(edge.cosine) < 1e-5  # orthogonal directions
    signs = {(number(e.cause), number(e.target)): e.effect > 0 for step in steps for e in step.edges}
    assert [edge for edge, positive in sorted(signs.items()) if not positive] == [(1, 4), (7, 8)]


def test_a_weak_edge_is_kept_when_asked_for(circuit, atlas):
    edges = planted(circuit, atlas, feature(4), min_effect=1e-5)[0].edges
    assert [number(e.cause) for e in edges] == [0, 1, 3]
    assert [abs(e.effect) for e in edges] == sorted((abs(e.effect) for e in edges), reverse=True)


@pytest.mark.slow
def test_without_their_description_the_edges_are_the_same(circuit, atlas):
    """Control: with it the edge has its effects by position."""
    for described, bare in zip(planted(circuit, atlas), planted(circuit, atlas, described=False), strict=True):
        assert all(edge.offsets for edge in described.edges) and not any(edge.offsets for edge in bare.edges)
        assert [replace(edge, offsets=(), direct=None) for edge in described.edges] == [*bare.edges]


def test_every_target_is_asked_once_down_to_layer_zero(circuit, atlas):
    """f4 is a cause of both f6 and f7; features of layer 0 have nothing below them."""
    targets = [number(step.target) for step in planted(circuit, atlas)]
    assert targets[0] == 8 and sorted(targets) == [4, 5, 6, 7, 8]


def test_the_cause_with_the_strongest_edge_is_asked_first(circuit, atlas):
    steps, waiting = planted(circuit, atlas), {TARGET: 1.0}
    for step in steps:
        strongest = max(waiting.values())
        assert waiting[step.target] == strongest
        del waiting[step.target]
        done = {s.target for s in steps[: steps.index(step) + 1]}
        for edge in step.edges:
            if edge.cause not in done and edge.cause.site != Site(0):
                waiting[edge.cause] = max(abs(edge.effect), waiting.get(edge.cause, 0))


@pytest.mark.slow
def test_max_targets_and_keep_are_respected(circuit, atlas):
    whole = planted(circuit, atlas)
    for n in (1, 3):
        assert [step.target for step in planted(circuit, atlas, max_targets=n)] == [s.target for s in whole[:n]]
    narrow = planted(circuit, atlas, keep=1)
    assert all(len(step.edges) == 1 for step in narrow)
    assert [number(step.target) for step in narrow] == [8, 6, number(narrow[1].edges[0].cause)]
    for step in narrow:
        wide = next(s for s in whole if s.target == step.target)
        assert step.edges == wide.edges[:1]
    assert planted(circuit, atlas, min_effect=50.0) == [TargetCauses(TARGET, (), whole[0].n_examples, whole[0].n_pairs)]


def test_a_layer_without_a_dictionary_is_passed_over(circuit):
    """Then effects span two blocks, and are total ones."""
    few = {site: d for site, d in circuit.dictionaries.items() if site.layer != 2}
    atlas = survey(circuit.model, few, circuit.contexts())
    steps = search(circuit.model, few, atlas, TARGET)
    examples = atlas.examples(TARGET, 16)
    expected = {c: circuit.effect(c, 8, examples.tokens, examples.end) for c in (4, 5)}
    assert {number(e.cause): e.effect for e in steps[0].edges} == pytest.approx(expected, abs=1e-5)
    assert cause_sites(circuit.model, few, FeatureTarget(TARGET, few[Site(3)])) == [Site(1)]
    assert cause_sites(circuit.model, few, FeatureTarget(feature(0), few[Site(0)]), Reach.ALL) == []


def test_fewer_than_sixteen_examples_are_refused_for_the_root_only(circuit):
    few = survey(circuit.model, circuit.dictionaries, circuit.contexts(15))
    with user_error("3_0", "15", "16"):
        planted(circuit, few)
    assert planted(circuit, survey(circuit.model, circuit.dictionaries, circuit.contexts(16)))[0].n_examples == 16


def test_a_rare_cause_is_kept_as_an_edge_but_not_asked(circuit):
    """f5 comes from the token before, here nonzero in 5 contexts only."""
    features = circuit.by_token.clone()
    quiet, contexts = torch.arange(60) % 2 == 0, circuit.contexts()
    contexts = (contexts // 2 * 2).clamp(0, 58)
    contexts[:, 1:] = contexts[:, 1:].clamp_min(2)
    contexts[:5, 3] += 1
    features[quiet, 2] = 0
    rare = Circuit()
    rare.by_token = features
    rare.model.embedding = features @ rare.d[:4]
    rare.dictionaries = {site: Clean(d) for site, d in rare.dictionaries.items()}
    steps = planted(rare, survey(rare.model, rare.dictionaries, contexts))
    assert feature(5) in {e.cause for step in steps for e in step.edges}
    assert feature(5) not in {step.target for step in steps} and feature(4) in {step.target for step in steps}


@pytest.fixture(scope="module")
def graph(circuit, atlas) -> FeatureGraph:
    return assemble(atlas, TARGET, planted(circuit, atlas), {"ablation": "zero"})


def test_the_graph_holds_what_was_found(circuit, atlas, graph):
    steps = planted(circuit, atlas)
    assert graph.target == TARGET and graph.edges == tuple(e for step in steps for e in step.edges)
    assert [number(node.id) for node in graph.nodes] == [8, 7, 6, 5, 4, 2, 1, 0]
    assert {node.id: node.n_examples for node in graph.nodes if node.n_examples} == {
        step.target: step.n_examples for step in steps
    }
    assert graph.facts["targets_asked"] == len(steps) and graph.facts["pairs_run"] == sum(s.n_pairs for s in steps)
    for node in graph.nodes:
        statistics = atlas.sites[node.id.site]
        assert node.density == pytest.approx(statistics.density[node.id.index].item())


def test_json_and_networkx(graph):
    text = json.dumps(to_plain(graph))
    assert from_plain(FeatureGraph, json.loads(text)) == graph
    other = graph.networkx()
    assert networkx.is_directed_acyclic_graph(other) and set(other) == {str(n.id) for n in graph.nodes}
    assert {(a, b): d["effect"] for a, b, d in other.edges(data=True)} == {
        (str(e.cause), str(e.target)): e.effect for e in graph.edges
    }
    assert other.nodes["3_0"]["layer"] == 3


@pytest.mark.slow
def test_a_depth_ends_the_search(circuit, atlas):
    whole = planted(circuit, atlas)
    assert [number(step.target) for step in planted(circuit, atlas, depth=1)] == [8]
    assert {number(step.target) for step in planted(circuit, atlas, depth=2)} == {8, 6, 7}
    assert len(planted(circuit, atlas, depth=9)) == len(whole)


def test_steps_of_an_interrupted_search_are_taken_over(circuit, atlas):
    whole = planted(circuit, atlas)
    searched = []

    class Watched(CauseSearch):
        def causes_of(self, target, *rest, **more):
            searched.append(target.node)
            return super().causes_of(target, *rest, **more)

    search = Watched(circuit.model, circuit.dictionaries, atlas, configured())
    done = [from_plain(TargetCauses, json.loads(json.dumps(to_plain(step)))) for step in whole[:3]]
    assert list(discover(search, search.feature(TARGET), done=done)) == whole
    assert not {step.target for step in whole[:3]} & {*searched} and {s.target for s in whole[3:]} <= {*searched}


def test_edges_over_several_blocks_say_what_goes_past_the_blocks(circuit, atlas):
    """All earlier sites at once: total effects by hand; features of layer 0 reach f8 only through others."""
    (step,) = planted(circuit, atlas, reach=Reach.ALL, max_targets=1, keep=None, search=SearchMode.EXHAUSTIVE)
    examples = atlas.examples(TARGET, 16)
    for edge in step.edges:
        if isinstance(edge.cause, FeatureId):
            expected = circuit.effect(number(edge.cause), 8, examples.tokens, examples.end)
            assert edge.effect == pytest.approx(expected, abs=1e-5) and edge.certified
    assert {edge.cause.site.layer for edge in step.edges} == {0, 1, 2}


@pytest.mark.slow
def test_the_screened_search_says_what_it_did_not_look_at(tiny_models):
    """With more latents than a screen proposes and an audit draws, edges are not certified, and the audit is there."""
    model = tiny_models["gpt2"]
    dictionaries = {Site(0): random_topk(32, 400, 30), Site(2): random_topk(32, 24, 12, seed=9)}
    contexts = random_tokens(model.n_vocab, 24, 12, seed=5)
    contexts[:, 0] = model.bos_id
    atlas = survey(model, dictionaries, contexts)
    target = FeatureId(Site(2), int(atlas.sites[Site(2)].top.sum(1).argmax()))
    every, few, first = (
        search(model, dictionaries, atlas, target, search=kind, keep=2, max_targets=1, errors=False)[0]
        for kind in (SearchMode.EXHAUSTIVE, SearchMode.SCREENED, SearchMode.FIRST_ORDER)
    )
    assert all(edge.certified for edge in every.edges) and not every.audits
    (audit,) = few.audits
    assert audit["n_drawn"] == 60 and audit["n_rest"] > 0 and not any(edge.certified for edge in few.edges)
    if not audit["n_beyond"]:
        assert audit["share"] == pytest.approx(0.0499, abs=1e-3)
    assert few.n_pairs < every.n_pairs and first.n_pairs == 0 and not any(e.certified for e in first.edges)
    assert {e.cause: e.effect for e in few.edges} == pytest.approx({e.cause: e.effect for e in every.edges}, abs=1e-6)
    assert every.edges[0].direct is not None and every.edges[0].direct != pytest.approx(every.edges[0].effect, abs=1e-4)


@pytest.mark.parametrize("settings", [{"keep": 0}, {"min_effect": -1.0}, {"n_null": -1}], ids=str)
def test_settings_that_make_no_sense(settings):
    with user_error(str(next(iter(settings.values())))):
        EdgeConfig(**settings)


@pytest.mark.slow
def test_features_of_attention_sinks_are_not_followed_unless_told_to(circuit, atlas):
    """They stay causes of others; a root is searched whatever it is."""
    steps = planted(circuit, atlas)
    sink = steps[-1].target
    root = FeatureTarget(TARGET, circuit.dictionaries[TARGET.site])
    spared = CauseSearch(circuit.model, circuit.dictionaries, atlas, configured(), sinks=frozenset({sink, TARGET}))
    without = list(discover(spared, root))
    assert without == steps[:-1]
    assert sink in {edge.cause for step in without for edge in step.edges}
