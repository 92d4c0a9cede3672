"""What suffices: known supports in a planted circuit, finite differences in real blocks, and graphs of members only."""

from dataclasses import dataclass, replace

import pytest
import torch
from handmade import Circuit, random_topk
from planted_circuit import TRUE, WEIGHTS, Planted
from tiny import Edit, random_tokens, user_error

from circuits.discovery.assembly import assemble
from circuits.discovery.edges import EdgeConfig
from circuits.discovery.member_edges import edges_among
from circuits.discovery.pruning import Choice, Search, prune, prune_at
from circuits.discovery.target_causes import CauseSearch, DiscoveryConfig
from circuits.effects.target_prompts import TargetPrompts
from circuits.effects.targets import FeatureTarget, LogitTarget
from circuits.features.atlas import Examples, survey
from circuits.graph import Readout
from circuits.scoring.ablations import KeepOnly, MeanAblation
from circuits.scoring.attribution import attribution
from circuits.scoring.circuit_runs import CircuitRuns, Errors, by_site, features_in
from circuits.scoring.faithfulness import Scale
from sae_core.dictionaries.saes import ReLUSAE
from sae_core.sites import FeatureId, Site, Stream


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.fixture(scope="module")
def runs(planted) -> CircuitRuns:
    return planted.scale().runs


@dataclass(frozen=True, eq=False)
class Turned:
    """Another target with the other sign."""

    other: FeatureTarget

    @property
    def node(self):
        return self.other.node

    @property
    def site(self):
        return self.other.site

    def read(self, h, example):
        return -self.other.read(h, example)

    def near(self, h):
        return self


def worth(planted: Planted) -> dict[int, float]:
    """What the target loses with each planted feature, by the weights: all there is, the model being linear."""
    return {feature: weight * planted.difference(feature) for feature, weight in WEIGHTS.items()}


def test_supports_are_what_is_lost_where_the_model_is_linear(planted, runs):
    members = TRUE | {Site(1): (4, 5, 9)}
    support = attribution(runs, members)
    alone = runs.values([members], Errors.ABLATED)
    lost = (alone - runs.without_each(members, Errors.ABLATED)).mean(1)
    assert [float(support[f.site][f.index]) for f in features_in(members)] == pytest.approx(lost.tolist(), abs=1e-5)
    for site, latents in TRUE.items():
        expected = {j: worth(planted)[j] for j in latents}
        assert {j: float(support[site][j]) for j in latents} == pytest.approx(expected, abs=1e-4)


def test_what_others_would_win_is_exact_where_the_model_is_linear(planted, runs):
    """Of the latents outside of a circuit: the target with each of them added, less that of the circuit alone."""
    members = {Site(0): (0, 2), Site(1): (4, 5), Site(2): (6,)}
    won = attribution(runs, members)
    alone = runs.values([members], Errors.ABLATED)[0].mean()
    outside = [FeatureId(site, j) for site in runs.sites for j in range(12) if j not in members[site]]
    larger = [members | {f.site: (*members[f.site], f.index)} for f in outside]
    exact = (runs.values(larger, Errors.ABLATED).mean(1) - alone).tolist()
    assert [float(won[f.site][f.index]) for f in outside] == pytest.approx(exact, abs=1e-5)
    assert min(exact) < -0.01, "feature 7 opposes the target"


@pytest.mark.parametrize("choice", [Choice(), Choice(exact_below=20, exchanges=0)])
def test_exactly_what_has_an_effect_is_left(planted, runs, choice):
    expected = worth(planted)
    sizes = sorted(expected, key=lambda f: -abs(expected[f]))
    assert {f.index for f in prune(runs, 20, choice=choice)} == {*expected}
    for n in (3, 5):
        assert {f.index for f in prune(runs, n, choice=choice)} == {*sizes[:n]}
    target = FeatureTarget(FeatureId(Site(3), 7), planted.dictionaries[Site(3)])  # what feature 4 drives
    turned = CircuitRuns(planted.model, planted.dictionaries, Turned(target), planted.prompts, planted.pairs)
    straight = CircuitRuns(planted.model, planted.dictionaries, target, planted.prompts, planted.pairs)
    assert prune(turned, 20) == prune(straight, 20) != [], "a target that is lowered is carried as well"
    with user_error("at least one node"):
        prune(runs, 0)


def test_an_exchange_brings_the_target_nearer_to_the_whole_models(planted, runs):
    """Whatever it begins with; a step that would not is not taken; where all there is is in the circuit, none is."""
    search = Search(runs, Choice())
    whole = torch.tensor([f.index in worth(planted) and f.index in TRUE[f.site] for f in search.names])
    assert search.missing(whole) == pytest.approx(0, abs=1e-5)
    assert torch.equal(search.exchanged(whole, 8), whole)
    poor = whole & torch.tensor([f.index in (1, 3, 7) for f in search.names])
    better = search.exchanged(poor, 3)
    assert search.missing(better) < search.missing(poor) and int(better.sum()) <= 3


def test_supports_are_the_derivative_by_finite_differences(tiny_models, kind):
    """In full forwards with hooks: the circuit alone, one member moved by +-eps (c_j - ablated c_j) d_j."""
    model = tiny_models[kind]
    generator = torch.Generator().manual_seed(0)  # ReLU: the codes of TopK jump
    dictionaries = {s: ReLUSAE(32, 48, generator=generator).requires_grad_(False) for s in model.sites()[:2]}
    tokens = random_tokens(model.n_vocab, 3, 6)
    tokens[:, 0] = model.bos_id
    prompts = Examples(tokens, torch.tensor([5, 4, 2]), torch.ones(3))
    plus, minus = random_tokens(model.n_vocab, 2, 3, seed=2)
    ablation = MeanAblation.over_text(model, dictionaries, random_tokens(model.n_vocab, 4, 8, seed=5))
    runs = CircuitRuns(model, dictionaries, LogitTarget(Readout("a - b"), model, plus, minus), prompts, ablation)
    members = {site: tuple(range(site.layer, 48, 2)) for site in dictionaries}
    support = attribution(runs, members)
    rows, mask, edits = torch.arange(3), runs.mask, {}
    for site, dictionary in dictionaries.items():
        kept = torch.zeros(1, 48, dtype=torch.bool)
        kept[0, list(members[site])] = True
        full = torch.zeros(3, 6, dtype=torch.bool)
        full[:, : mask.shape[1]] = mask
        codes, error = ablation.at(site, dictionary, rows, 6)
        edits[site] = KeepOnly(site, dictionary, kept, codes, error, full)

    def moved(site: Site, j: int, step: float) -> float:
        def change(h):
            c = dictionaries[site].encode(h)[..., j, None] - ablation.codes[site][j]
            return edits[site](h) + step * c * dictionaries[site].directions[j] * edits[site].mask[..., None]

        other = [edits[s] if s != site else Edit(site, change) for s in dictionaries]
        with model.hooks(*other):
            logits = model.logits(tokens)[rows, prompts.end]
        return (logits[rows, plus] - logits[rows, minus]).double().mean().item()

    for site in dictionaries:
        for j in support[site].abs().topk(3).indices.tolist():
            slope = (moved(site, j, 0.01) - moved(site, j, -0.01)) / 0.02
            assert support[site][j].item() == pytest.approx(slope, rel=0.03, abs=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [Stream.RESID_POST, Stream.MLP_OUT])
def test_a_pruned_circuit_carries_more_than_random_ones_of_its_size(storybook, stream):
    """On prompts that it was not chosen on, of residuals and of what blocks write."""
    dictionaries = {site: random_topk(128, 512, 32, seed=site.layer) for site in storybook.sites(stream)[3:5]}
    tokens = random_tokens(storybook.n_vocab, 48, 8)
    tokens[:, 0] = storybook.bos_id
    plus, minus = torch.full((24,), 30), torch.full((24,), 40)
    ablation = MeanAblation.over_text(storybook, dictionaries, tokens)

    def on(rows: slice) -> CircuitRuns:
        target = LogitTarget(Readout("a - b"), storybook, plus, minus)
        prompts = Examples(tokens[rows], torch.full((24,), 7), torch.ones(24))
        return CircuitRuns(storybook, dictionaries, target, prompts, ablation)

    chosen = prune(on(slice(24)), 100)
    draw = torch.Generator().manual_seed(0)
    drawn = [{site: torch.randperm(512, generator=draw)[:50].tolist() for site in dictionaries} for _ in range(5)]
    held = on(slice(24, 48))
    scale = Scale(held)
    pruned, *others = (scale.share(v).value for v in held.values([by_site(chosen), *drawn], Errors.ABLATED))
    assert pruned > 0 and pruned > max(others)


# ---- the graph of what suffices --------------------------------------------------------------------


def searched(circuit: Circuit) -> tuple[CauseSearch, FeatureTarget]:
    dictionaries = circuit.dictionaries
    atlas = survey(circuit.model, dictionaries, circuit.contexts(40))
    config = DiscoveryConfig(EdgeConfig(keep=1, n_null=0, errors=False), 16, min_examples=4)
    return CauseSearch(circuit.model, dictionaries, atlas, config), FeatureTarget(
        FeatureId(Site(3), 0), dictionaries[Site(3)]
    )


def test_what_suffices_is_sought_at_the_sites_covered_and_on_the_ablation_given():
    circuit = Circuit()
    search, target = searched(circuit)
    examples = search.source.examples(target.node, 16)
    prompts, contexts = TargetPrompts(target, examples), circuit.contexts(40)
    model, saes = search.model, search.dictionaries
    chosen = prune_at(model, saes, prompts, contexts, 4, cover=2)
    assert chosen and {f.site for f in chosen} == {Site(1), Site(2)}
    assert {f.site for f in prune_at(model, saes, prompts, contexts, 4, cover=1)} == {Site(2)}
    with user_error("3_0", "no circuit can be scored"):  # ablated to what it is
        prune_at(model, saes, replace(prompts, corrupted=examples.tokens), contexts, 4, cover=2)


@pytest.mark.slow
def test_within_members_only_their_edges_are_found():
    circuit = Circuit()
    search, target = searched(circuit)
    search = replace(search, config=replace(search.config, edges=EdgeConfig(3, n_null=0)))
    members = {Site(2): (0, 1), Site(1): (0,)}
    steps = list(edges_among(search, members, target))
    edges = {(str(edge.cause), str(edge.target)): edge for step in steps for edge in step.edges}
    assert {*edges} == {("2_0", "3_0"), ("2_1", "3_0"), ("1_0", "2_0"), ("1_0", "2_1")}
    assert all(edge.certified for edge in edges.values())
    assert [edge.cause.index for edge in steps[0].edges] == [0, 1], "the strongest first"
    graph = assemble(search.source, target.node, steps, {}, [FeatureId(Site(0), 1)])
    assert "0_1" in {str(node.id) for node in graph.nodes}, "a member without an edge is a node"
    over = list(edges_among(search, {Site(2): (), Site(1): (0,)}, target))
    assert [(str(e.cause), str(e.target)) for e in over[0].edges] == [("1_0", "3_0")], "over a layer without members"
    again = list(edges_among(search, members, target, done=[replace(steps[0], edges=())]))
    assert again[0].edges == () and again[1:] == steps[1:], "what is known is taken over"
