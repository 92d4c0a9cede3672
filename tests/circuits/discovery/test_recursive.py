"""From a target to its circuit: planted circuits come back edge by edge, and the atlas says what a plain pass says."""

import json

import networkx
import pytest
import torch
from handmade import Circuit, random_topk
from tiny import random_tokens, user_error

from circuits.discovery.assembly import assemble
from circuits.discovery.default_target import default_target
from circuits.discovery.edges import EdgeConfig, Search
from circuits.discovery.recursive import discover
from circuits.discovery.target_causes import (
    CauseSearch,
    DiscoveryConfig,
    Reach,
    TargetCauses,
    cause_sites,
    check_target,
)
from circuits.effects.targets import FeatureTarget, LogitTarget
from circuits.features.atlas import (
    FeatureAtlas,
    direct_effect,
    most_predictive,
    strongest_writer,
    survey,
)
from circuits.features.reading import Chunks
from circuits.graph import Edge, ErrorTerm, FeatureGraph, Node, Readout, nodes_of
from sae_core.codec import from_plain, to_plain
from sae_core.dictionaries.baselines import Basis
from sae_core.sites import FeatureId, Site, Stream


def feature(number: int) -> FeatureId:
    """The name of a feature of `Circuit`."""
    layer = next(i for i, features in enumerate(Circuit.FEATURES) if number in features)
    return FeatureId(Site(layer), Circuit.FEATURES[layer].index(number))


def number(name: FeatureId) -> int:
    return Circuit.FEATURES[name.site.layer][name.index]


TARGET = feature(8)


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return Circuit()


@pytest.fixture(scope="module")
def atlas(circuit) -> FeatureAtlas:
    return survey(circuit.model, circuit.dictionaries, circuit.contexts())


def configured(**config) -> DiscoveryConfig:
    """A small configuration; of `config`, what edges are about goes to theirs."""
    own = {name: config.pop(name) for name in list(config) if name in EdgeConfig.__dataclass_fields__}
    return DiscoveryConfig(EdgeConfig(**({"n_null": 20} | own)), **config)


def search(model, dictionaries, atlas, target: FeatureId, **config) -> list[TargetCauses]:
    root = FeatureTarget(target, dictionaries[target.site])
    return list(discover(CauseSearch(model, dictionaries, atlas, configured(**config)), root))


def asked(circuit, atlas, target: FeatureId = TARGET, **config) -> list[TargetCauses]:
    return search(circuit.model, circuit.dictionaries, atlas, target, **config)


# ---- planted circuits ------------------------------------------------------------------------------


def test_the_planted_circuit_comes_back_edge_by_edge(circuit, atlas):
    """All planted edges but the one of 0.001, none besides, each as large as by hand on its target's examples."""
    steps = asked(circuit, atlas)
    found = {(number(e.cause), number(e.target)) for step in steps for e in step.edges}
    assert found == {(0, 4), (1, 4), (2, 5), (4, 6), (5, 6), (4, 7), (6, 8), (7, 8)}
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
    edges = asked(circuit, atlas, feature(4), min_effect=1e-5)[0].edges
    assert [number(e.cause) for e in edges] == [0, 1, 3]
    assert [abs(e.effect) for e in edges] == sorted((abs(e.effect) for e in edges), reverse=True)


def test_every_target_is_asked_once_down_to_layer_zero(circuit, atlas):
    """f4 is a cause of both f6 and f7; features of layer 0 have nothing below them."""
    targets = [number(step.target) for step in asked(circuit, atlas)]
    assert targets[0] == 8 and sorted(targets) == [4, 5, 6, 7, 8]


def test_the_cause_with_the_strongest_edge_is_asked_first(circuit, atlas):
    steps, waiting = asked(circuit, atlas), {TARGET: 1.0}
    for step in steps:
        strongest = max(waiting.values())
        assert waiting[step.target] == strongest
        del waiting[step.target]
        done = {s.target for s in steps[: steps.index(step) + 1]}
        for edge in step.edges:
            if edge.cause not in done and edge.cause.site != Site(0):
                waiting[edge.cause] = max(abs(edge.effect), waiting.get(edge.cause, 0))


def test_max_targets_and_keep_are_respected(circuit, atlas):
    whole = asked(circuit, atlas)
    for n in (1, 3):
        assert [step.target for step in asked(circuit, atlas, max_targets=n)] == [s.target for s in whole[:n]]
    narrow = asked(circuit, atlas, keep=1)
    assert all(len(step.edges) == 1 for step in narrow)
    assert [number(step.target) for step in narrow] == [8, 6, number(narrow[1].edges[0].cause)]
    for step in narrow:
        wide = next(s for s in whole if s.target == step.target)
        assert step.edges == wide.edges[:1]
    assert asked(circuit, atlas, min_effect=50.0) == [TargetCauses(TARGET, (), whole[0].n_examples, whole[0].n_pairs)]


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


def test_the_nearest_residual_site_or_every_earlier_one(tiny):
    sites = (Site(0), Site(1, Stream.MLP_OUT), Site(1), Site(2, Stream.ATTN_OUT), Site(2, Stream.MLP_OUT))
    own = {site: random_topk(32) for site in sites}

    def at(site: Site, reach: Reach) -> list[Site]:
        return cause_sites(tiny, own, FeatureTarget(FeatureId(site, 0), random_topk(32)), reach)

    assert at(Site(2), Reach.ADJACENT) == [Site(1)] and at(Site(1, Stream.MLP_OUT), Reach.ADJACENT) == [Site(0)]
    everything = at(Site(2, Stream.MLP_OUT), Reach.ALL)
    parallel = not tiny.feeds(Site(2, Stream.ATTN_OUT), Site(2, Stream.MLP_OUT))
    assert everything == ([] if parallel else [Site(2, Stream.ATTN_OUT)]) + [Site(1), Site(1, Stream.MLP_OUT), Site(0)]
    target = LogitTarget(Readout("a"), tiny, torch.tensor([5]))
    assert cause_sites(tiny, own | {Site(2): random_topk(32)}, target) == [Site(2)]


def test_fewer_than_sixteen_examples_are_refused_for_the_root_only(circuit):
    few = survey(circuit.model, circuit.dictionaries, circuit.contexts(15))
    with user_error("3_0", "15", "16"):
        asked(circuit, few)
    assert asked(circuit, survey(circuit.model, circuit.dictionaries, circuit.contexts(16)))[0].n_examples == 16


def test_a_rare_cause_is_kept_as_an_edge_but_not_asked(circuit):
    """f5 comes from the token before, here nonzero in 5 contexts only."""
    given = circuit.given.clone()
    quiet, contexts = torch.arange(60) % 2 == 0, circuit.contexts()
    contexts = (contexts // 2 * 2).clamp(0, 58)
    contexts[:, 1:] = contexts[:, 1:].clamp_min(2)
    contexts[:5, 3] += 1
    given[quiet, 2] = 0
    rare = Circuit()
    rare.given = given
    rare.model.embedding = given @ rare.d[:4]
    rare.dictionaries = {site: _Clean(d) for site, d in rare.dictionaries.items()}
    steps = asked(rare, survey(rare.model, rare.dictionaries, contexts))
    assert feature(5) in {e.cause for step in steps for e in step.edges}
    assert feature(5) not in {step.target for step in steps} and feature(4) in {step.target for step in steps}


class _Clean:
    """A dictionary whose codes are zero where they are only rounding."""

    def __init__(self, basis: Basis):
        self.basis, self.directions, self.decode = basis, basis.directions, basis.decode

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        f = self.basis.encode(x)
        return f * (f.abs() > 1e-5)


@pytest.mark.parametrize(
    "target, words",
    [("5_0", ("resid_post.5", "resid_post.0")), ("3_1", ("3_1", "1 latents")), ("0_2", ("0_2", "below it"))],
)
def test_a_target_that_cannot_be_explained_is_refused(circuit, target, words):
    with user_error(*words):
        check_target(circuit.model, circuit.dictionaries, FeatureId.parse(target))


def test_good_targets_pass(circuit):
    for target in ("3_0", "1_1", "2_0"):
        check_target(circuit.model, circuit.dictionaries, FeatureId.parse(target))


# ---- the graph -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph(circuit, atlas) -> FeatureGraph:
    search = CauseSearch(circuit.model, circuit.dictionaries, atlas, configured())
    return assemble(search, atlas, TARGET, asked(circuit, atlas), {"ablation": "zero"})


def test_the_graph_holds_what_was_found(circuit, atlas, graph):
    steps = asked(circuit, atlas)
    assert graph.target == TARGET and graph.edges == tuple(e for step in steps for e in step.edges)
    assert [number(node.id) for node in graph.nodes] == [8, 7, 6, 5, 4, 2, 1, 0]
    assert {node.id: node.n_examples for node in graph.nodes if node.n_examples} == {
        step.target: step.n_examples for step in steps
    }
    assert graph.facts["targets_asked"] == len(steps) and graph.facts["pairs_run"] == sum(s.n_pairs for s in steps)
    for node in graph.nodes:
        own = atlas.sites[node.id.site]
        assert node.density == pytest.approx(own.density[node.id.index].item())
        assert 1 <= len(node.responds_to) <= 3 and bool(node.promotes) == (node.id == TARGET)


def test_json_and_networkx(graph):
    text = json.dumps(to_plain(graph))
    assert from_plain(FeatureGraph, json.loads(text)) == graph
    other = graph.networkx()
    assert networkx.is_directed_acyclic_graph(other) and set(other) == {str(n.id) for n in graph.nodes}
    assert {(a, b): d["effect"] for a, b, d in other.edges(data=True)} == {
        (str(e.cause), str(e.target)): e.effect for e in graph.edges
    }
    assert other.nodes["3_0"]["layer"] == 3


def test_json_of_other_nodes_and_of_an_empty_graph():
    mlp, logit, error = FeatureId(Site(1, Stream.MLP_OUT), 7), Readout("she - he"), ErrorTerm(Site(0))
    nodes = (Node(mlp, ('"', "ü"), 0.25, ("<",), 3, 0.5, "a name"), Node(logit), Node(error))
    edges = (
        Edge(FeatureId(Site(0), 1), mlp, -0.5, 0.1, 3, 16, 0.1, 0.2, None, False, ((0, -0.4), (3, -0.1))),
        Edge(mlp, logit, 0.5, 0.1, 16, 16),
        Edge(error, logit, 0.1, 0.0, 16, 16),
    )
    for graph in (FeatureGraph(logit, nodes, edges, {"seed": 0}), FeatureGraph(mlp, (), ())):
        assert from_plain(FeatureGraph, json.loads(json.dumps(to_plain(graph)))) == graph
    assert nodes_of(edges, logit) == [logit, mlp, FeatureId(Site(0), 1), error]
    assert nodes_of([], mlp) == [mlp]
    assert [edge.solid for edge in edges] == [True, True, True]
    assert not Edge(mlp, logit, 0.1, 0.0, 1, 1, null=0.2).solid and Edge(mlp, logit, -0.3, 0.0, 1, 1, null=0.2).solid


# ---- how far, and how ------------------------------------------------------------------------------


def test_a_depth_ends_the_search(circuit, atlas):
    whole = asked(circuit, atlas)
    assert [number(step.target) for step in asked(circuit, atlas, depth=1)] == [8]
    assert {number(step.target) for step in asked(circuit, atlas, depth=2)} == {8, 6, 7}
    assert len(asked(circuit, atlas, depth=9)) == len(whole)


def test_steps_of_an_interrupted_search_are_taken_over(circuit, atlas):
    whole = asked(circuit, atlas)
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
    (step,) = asked(circuit, atlas, reach=Reach.ALL, max_targets=1, keep=None, search=Search.EXHAUSTIVE)
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
    own = {Site(0): random_topk(32, 400, 30), Site(2): random_topk(32, 24, 12, seed=9)}
    contexts = random_tokens(model.n_vocab, 24, 12, seed=5)
    contexts[:, 0] = model.bos_id
    atlas = survey(model, own, contexts)
    target = FeatureId(Site(2), int(atlas.sites[Site(2)].top.sum(1).argmax()))
    every, few, first = (
        search(model, own, atlas, target, search=kind, keep=2, max_targets=1, errors=False)[0]
        for kind in (Search.EXHAUSTIVE, Search.SCREENED, Search.FIRST_ORDER)
    )
    assert all(edge.certified for edge in every.edges) and not every.audits
    (audit,) = few.audits
    assert audit["n_drawn"] == 60 and audit["n_rest"] > 0 and not any(edge.certified for edge in few.edges)
    if not audit["n_beyond"]:
        assert audit["share"] == pytest.approx(0.0499, abs=1e-3)
    assert few.n_pairs < every.n_pairs and first.n_pairs == 0 and not any(e.certified for e in first.edges)
    assert {e.cause: e.effect for e in few.edges} == pytest.approx({e.cause: e.effect for e in every.edges}, abs=1e-6)
    assert every.edges[0].direct is not None and every.edges[0].direct != pytest.approx(every.edges[0].effect, abs=1e-4)


@pytest.mark.parametrize("given", [{"keep": 0}, {"min_effect": -1.0}, {"n_null": -1}], ids=str)
def test_settings_that_make_no_sense(given):
    with user_error(str(next(iter(given.values())))):
        EdgeConfig(**given)


# ---- the atlas -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def surveyed(tiny_models):
    """Statistics of two random dictionaries on 21 contexts, with BOS first and elsewhere."""
    model = tiny_models["neox"]
    contexts = random_tokens(model.n_vocab, 21, 7, seed=4)
    contexts[:, 0] = contexts[::4, 3] = model.bos_id
    dictionaries = {Site(0): random_topk(32, 20, 3), Site(2, Stream.MLP_OUT): random_topk(32, 20, 3, seed=7)}
    return model, dictionaries, contexts, survey(model, dictionaries, contexts, top=6, chunks=Chunks(contexts=5))


def dense_codes(surveyed, site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    """All codes from one pass, zero outside content; and which tokens are content."""
    model, dictionaries, contexts, _ = surveyed
    content = contexts != model.bos_id
    return dictionaries[site].encode(model.record(contexts, [site])[site]) * content[..., None], content


@pytest.mark.parametrize("site", [Site(0), Site(2, Stream.MLP_OUT)], ids=str)
def test_statistics_equal_a_plain_dense_computation(surveyed, site):
    f, content = dense_codes(surveyed, site)
    own = surveyed[3].sites[site]
    active = (f != 0).sum((0, 1))
    assert torch.allclose(own.density, active / content.sum())
    assert torch.allclose(own.mean_active, f.sum((0, 1)) / active.clamp_min(1), rtol=1e-4, atol=1e-6)
    assert own.top.shape == own.context.shape == own.position.shape == (20, 6)
    for j in range(20):
        peaks = sorted(((float(f[row, :, j].max()), row) for row in range(21)), reverse=True)[:6]
        assert own.top[j].tolist() == pytest.approx([peak for peak, _ in peaks], abs=1e-5)
        for k in range(6):
            if own.top[j, k] > 0:
                row, pos = int(own.context[j, k]), int(own.position[j, k])
                assert f[row, pos, j].item() == pytest.approx(f[row, :, j].max().item(), abs=1e-5)
                assert row == peaks[k][1] and content[row, pos]


def test_the_mean_final_residual_is_that_of_the_content_tokens(surveyed):
    model, _, contexts, atlas = surveyed
    h = model.record(contexts, [Site(2)])[Site(2)][contexts != model.bos_id]
    assert torch.allclose(atlas.mean_final, h.mean(0), atol=1e-4)


def test_how_the_contexts_are_split_does_not_show(surveyed):
    model, dictionaries, contexts, atlas = surveyed
    whole = survey(model, dictionaries, contexts, top=6, chunks=Chunks(contexts=21))
    for site, own in whole.sites.items():
        assert torch.equal(own.density, atlas.sites[site].density)
        assert torch.allclose(own.top, atlas.sites[site].top, atol=1e-5)


def test_examples_are_one_per_context_with_distinct_texts(circuit):
    """Every context four times, and once more with another end: the doubles are not shown."""
    contexts = circuit.contexts(12)
    changed = contexts.clone()
    changed[:, -1] = contexts[:, -1] % 59 + 1
    atlas = survey(circuit.model, circuit.dictionaries, torch.cat([contexts, contexts, changed, contexts]))
    for target in (feature(8), feature(5), feature(0)):
        examples = atlas.examples(target, 100)
        texts = [
            tuple(row[: end + 1].tolist()) for row, end in zip(examples.tokens, examples.end.tolist(), strict=True)
        ]
        assert len(set(texts)) == len(texts) == len(examples) >= 12
        assert examples.activation.tolist() == sorted(examples.activation.tolist(), reverse=True)
        plain = circuit.activation(number(target), examples.tokens)
        assert torch.allclose(plain[torch.arange(len(texts)), examples.end], examples.activation, atol=1e-5)
        assert torch.allclose(plain.amax(1), examples.activation, atol=1e-5)
        assert len(atlas.examples(target, 5)) == 5


def test_a_latent_that_is_never_active_has_no_examples(circuit):
    silent = random_topk(12, 8, 2)
    with torch.no_grad():
        silent.b_enc[3] = -1e6
    atlas = survey(circuit.model, {Site(1): silent}, circuit.contexts())
    examples = atlas.examples(FeatureId(Site(1), 3), 10)
    assert len(examples) == 0 and atlas.sites[Site(1)].density[3] == 0 and atlas.sites[Site(1)].mean_active[3] == 0
    assert atlas.responds_to(FeatureId(Site(1), 3), circuit.model) == []
    assert len(atlas.examples(FeatureId(Site(1), 2), 10)) > 0  # control


def test_what_a_feature_responds_to(circuit):
    """Feature 0 alone on two tokens: the strongest contexts peak there."""
    contexts = circuit.contexts(30).clamp_max(40)
    contexts[:20, 4], contexts[20:25, 3] = 50, 51
    model = Circuit()
    model.given[50:52, 0] = torch.tensor([9.0, 8.0])
    model.model.embedding = model.given @ model.d[:4]
    atlas = survey(model.model, model.dictionaries, contexts)
    assert atlas.responds_to(feature(0), model.model, 2) == ["t50", "t51"]


def test_what_a_last_layer_feature_says(circuit, atlas):
    """Added along one token's embedding, it raises the tokens that have most in common with it."""
    direction = circuit.model.embedding[7]
    expected = (circuit.model.embedding @ direction).topk(3).indices.tolist()
    assert atlas.promotes(TARGET, direction, circuit.model) == [f"t{token}" for token in expected]
    change = direct_effect(circuit.model, atlas, Site(3), direction[None], torch.tensor([0]))[0]
    logits = atlas.sites[Site(3)].mean_active[0] * (circuit.model.embedding @ direction)
    assert torch.allclose(change, logits - logits.mean(), atol=1e-4)


# ---- default targets -------------------------------------------------------------------------------


def with_feature_2_before(circuit: Circuit, contexts: torch.Tensor) -> tuple[Circuit, torch.Tensor]:
    """Wherever token 50 or 51 comes next, the token is 45, on which feature 2 is large."""
    contexts = contexts.clamp_max(40)
    contexts[:15, 3], contexts[:15, 4], contexts[15:20, 5], contexts[15:20, 6] = 45, 50, 45, 51
    planted = Circuit()
    planted.given[45, 2] = 5.0
    planted.model.embedding = planted.given @ planted.d[:4]
    return planted, contexts


def correlations(circuit: Circuit, contexts: torch.Tensor, next_tokens: list[int]) -> torch.Tensor:
    """Of features 0-3 with "one of `next_tokens` comes next", over content tokens."""
    content = contexts[:, :-1] != 0
    f = circuit.given[contexts[:, :-1]][content].double()
    y = torch.isin(contexts[:, 1:], torch.tensor(next_tokens))[content].double()
    return torch.stack([torch.corrcoef(torch.stack([column, y]))[0, 1] for column in f.T])


def predicts(circuit: Circuit, contexts: torch.Tensor, next_tokens: list[int], *, top: int = 16) -> FeatureId:
    atlas = survey(circuit.model, circuit.dictionaries, contexts, top=top)
    return most_predictive(circuit.model, circuit.dictionaries[Site(0)], Site(0), atlas, next_tokens)


def test_most_predictive_finds_a_planted_latent(circuit):
    planted, contexts = with_feature_2_before(circuit, circuit.contexts(30))
    assert predicts(planted, contexts, [50, 51]) == FeatureId(Site(0), 2)
    assert correlations(planted, contexts, [50, 51]).argmax() == 2
    without = circuit, contexts  # control: on token 45 feature 2 is as on any other
    assert predicts(*without, [50, 51]).index == correlations(*without, [50, 51]).argmax() != 2


def test_most_predictive_asks_what_the_strongest_examples_say():
    """50 follows 45, on which features 2 and 3 are 1. Feature 3 correlates better, but is strongest on 44."""
    contexts = torch.ones(40, 7, dtype=torch.long)
    contexts[:20, 2:4], contexts[:20, 5], contexts[:10, 4], contexts[:, 0] = torch.tensor([45, 50]), 46, 44, 0
    planted = Circuit()
    planted.given = torch.zeros(60, 4)
    planted.given[45, 2:], planted.given[46, 2], planted.given[44, 3] = 1.0, 0.9, 1.05
    planted.model.embedding = planted.given @ planted.d[:4]
    planted.dictionaries = {Site(0): _Clean(planted.dictionaries[Site(0)])}
    correlation = correlations(planted, contexts, [50])
    assert correlation[3] > correlation[2] > 0.5
    assert predicts(planted, contexts, [50]) == FeatureId(Site(0), 2)
    contexts[contexts == 44] = 1  # control: without it feature 3 is as clean, and correlates better
    assert predicts(planted, contexts, [50]) == FeatureId(Site(0), 3)


def test_a_peak_at_the_end_of_a_context_says_nothing_about_what_follows():
    """Feature 3 is large on 50 itself, at the contexts' ends: once, the token it stands on was taken for the next."""
    contexts = torch.ones(40, 7, dtype=torch.long)
    contexts[:, 0], contexts[:24, 6], contexts[:24, 5], contexts[20:22, 2] = 0, 50, 46, 50
    contexts[20:22, 1] = 45
    planted = Circuit()
    planted.given = torch.zeros(60, 4)
    planted.given[45, 2], planted.given[46, 3], planted.given[50, 3] = 1.0, 0.9, 1.0
    planted.model.embedding = planted.given @ planted.d[:4]
    planted.dictionaries = {Site(0): _Clean(planted.dictionaries[Site(0)])}
    assert predicts(planted, contexts, [50]) == FeatureId(Site(0), 2)


def test_most_predictive_needs_the_tokens_in_the_text(circuit):
    with user_error("none of the tokens"):
        predicts(circuit, circuit.contexts(10).clamp_max(40), [55])


def test_strongest_writer_is_the_latent_with_the_largest_direct_effect(circuit, atlas):
    """Of f6 and f7 read as if they were final: compared by hand over all tokens."""
    dictionary, own = circuit.dictionaries[Site(0)], atlas.sites[Site(0)]
    effect = own.mean_active[:, None] * (dictionary.directions @ circuit.model.embedding.T)
    expected = int((effect - effect.mean(-1, keepdim=True)).amax(-1).argmax())
    assert strongest_writer(circuit.model, dictionary, Site(0), atlas) == FeatureId(Site(0), expected)


def test_strongest_writer_prefers_rare_latents(circuit):
    """A latent of density 1/200 wins against all that are always active, however small it is."""
    contexts = circuit.contexts(240, 6, seed=3).clamp_max(40)
    contexts[:6, 3] = 50
    rare = Circuit()
    rare.given[:, 3], rare.given[50, 3] = 0, 0.1
    rare.model.embedding = rare.given @ rare.d[:4]
    dictionaries = {Site(0): _Clean(rare.dictionaries[Site(0)])}
    atlas = survey(rare.model, dictionaries, contexts, top=6)
    assert atlas.sites[Site(0)].density[3] == pytest.approx(6 / 1200)
    assert strongest_writer(rare.model, dictionaries[Site(0)], Site(0), atlas) == FeatureId(Site(0), 3)


def test_strongest_writer_needs_a_latent_that_is_active(circuit):
    silent = random_topk(12, 8, 2)
    with torch.no_grad():
        silent.b_enc.fill_(-1e6)
    atlas = survey(circuit.model, {Site(3): silent}, circuit.contexts())
    with user_error("resid_post.3", "active"):
        strongest_writer(circuit.model, silent, Site(3), atlas)


def test_a_default_target_needs_a_residual_site(circuit, atlas):
    with user_error("resid_post", "mlp_out.1"):
        default_target(circuit.model, {Site(1, Stream.MLP_OUT): random_topk(12)}, atlas)
