"""Controls: who is drawn at random, what a first-order circuit is, and how much two graphs have in common."""

import json
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from handmade import Circuit, random_topk
from tiny import Edit, random_tokens, user_error

from circuits.effects.targets import FeatureTarget, LogitTarget
from circuits.features.atlas import Examples
from circuits.graph import Readout
from circuits.scoring.ablations import MeanAblation, ResampleAblation
from circuits.scoring.attribution import attribution, attribution_circuit, strongest
from circuits.scoring.circuit_runs import CircuitRuns, Errors
from circuits.scoring.controls import (
    Controls,
    Overlap,
    Stability,
    compare_with_controls,
    overlap,
    random_circuits,
    stability,
)
from circuits.scoring.faithfulness import Scale
from sae_core.dictionaries.baselines import Basis
from sae_core.sites import FeatureId, Site

# ---- random circuits -------------------------------------------------------------------------------

DENSITY = {Site(0): torch.logspace(-4, -1, 60), Site(1): torch.logspace(-3, 0, 60)}


def drawn(seed: int = 0, n: int = 20, members=None, density=DENSITY):
    members = members or {Site(0): (5, 30), Site(1): (50,), Site(2): ()}
    return random_circuits(members, density, n, generator=torch.Generator().manual_seed(seed))


def test_random_circuits_have_the_size_and_the_density_of_the_members_and_none_of_them():
    circuits = drawn()
    assert len(circuits) == 20 and len({str(one) for one in circuits}) > 10
    for circuit in circuits:
        assert sorted(circuit) == [Site(0), Site(1)]
        (near_5, near_30), (near_50,) = circuit[Site(0)], circuit[Site(1)]
        # the ten others of nearest log density lie within five or six places
        assert 0 < abs(near_5 - 5) <= 6 and 0 < abs(near_30 - 30) <= 6 and 0 < abs(near_50 - 50) <= 6


def test_the_same_seed_draws_the_same_circuits():
    assert drawn(3) == drawn(3) != drawn(4)


def test_neighbouring_members_never_share_a_stand_in():
    members = {Site(0): tuple(range(20, 32))}
    for circuit in drawn(members=members):
        assert len(set(circuit[Site(0)])) == 12 and not set(circuit[Site(0)]) & set(members[Site(0)])


def test_latents_that_are_never_active_are_not_drawn():
    density = {Site(0): torch.tensor([0.1, 0.1, 0.0, 0.0, 0.2, 0.3])}
    for circuit in drawn(members={Site(0): (0, 1)}, density=density):
        assert set(circuit[Site(0)]) == {4, 5}
    with user_error("resid_post.0", "2 active latents", "the 3 chosen", "choose fewer"):
        drawn(members={Site(0): (0, 1, 2)}, density=density)


# ---- first order -----------------------------------------------------------------------------------


def linear_trial() -> CircuitRuns:
    """Feature 8 of the planted circuit, which is linear, so that attribution is exact."""
    circuit = Circuit()
    dictionaries = {site: Basis(circuit.d, torch.zeros(12)) for site in circuit.model.sites()}
    prompts = Examples(circuit.contexts(10), torch.tensor([2, 3, 4, 5, 6, 7] * 2)[:10], torch.ones(10))
    other = ResampleAblation.paired(circuit.model, dictionaries, prompts, circuit.contexts(10, seed=9))
    target = FeatureTarget(FeatureId(Site(3), 8), dictionaries[Site(3)])
    return CircuitRuns(circuit.model, dictionaries, target, prompts, other)


def test_attribution_is_the_effect_where_the_model_is_linear():
    trial = linear_trial()
    found = attribution(trial)
    features = [FeatureId(site, j) for site in trial.sites for j in range(12)]
    without = [trial.without({f.site: (f.index,)}) for f in features]
    effects = (trial.whole.double() - trial.values(without, Errors.KEPT)).mean(1)
    assert torch.cat([found[site] for site in trial.sites]).tolist() == pytest.approx(effects.tolist(), abs=1e-5)
    planted = {(0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (2, 6), (2, 7)}
    assert {(f.site.layer, f.index) for f, e in zip(features, effects, strict=True) if abs(e) > 1e-6} == planted


def test_first_order_circuits_take_the_largest_of_each_site():
    found = attribution(linear_trial())
    assert {
        s: set(own) for s, own in attribution_circuit(found, {Site(1): (9, 3), Site(2): (0, 1), Site(0): ()}).items()
    } == {
        Site(1): {4, 5},
        Site(2): {6, 7},
    }
    order = strongest(found, 8)
    assert {(f.site.layer, f.index) for f in order[:7]} == {(0, 0), (0, 1), (0, 2), (1, 4), (1, 5), (2, 6), (2, 7)}
    sizes = [abs(float(found[f.site][f.index])) for f in order]
    assert all(a >= b for a, b in pairwise(sizes)) and sizes[0] == max(float(own.abs().max()) for own in found.values())


def test_attribution_is_the_derivative_by_finite_differences(tiny_models, kind):
    """Every site moved by +-eps (c_j - ablated c_j) d_j at the content positions, in full forwards with a hook."""
    model = tiny_models[kind]
    dictionaries = {site: random_topk(32, seed=site.layer) for site in model.sites()[:2]}
    tokens = random_tokens(model.n_vocab, 3, 6)
    tokens[:, 0] = model.bos_id
    prompts = Examples(tokens, torch.tensor([5, 4, 2]), torch.ones(3))
    plus, minus = random_tokens(model.n_vocab, 2, 3, seed=2)
    ablation = MeanAblation.over_text(model, dictionaries, random_tokens(model.n_vocab, 4, 8, seed=5))
    trial = CircuitRuns(model, dictionaries, LogitTarget(Readout("a - b"), model, plus, minus), prompts, ablation)
    found = attribution(trial)
    rows, content = torch.arange(3), model.content(tokens)[..., None]
    recorded = model.record(tokens, model.sites())

    def moved(site: Site, j: int, step: float) -> float:
        c = dictionaries[site].encode(recorded[site])[..., j, None] - ablation.codes[site][j]
        change = step * c * dictionaries[site].directions[j] * content
        with model.hooks(Edit(site, lambda h: h + change)):
            logits = model.logits(tokens)[rows, prompts.end]
        return (logits[rows, plus] - logits[rows, minus]).double().mean().item()

    for site in dictionaries:
        largest = found[site].abs().topk(4).indices.tolist()
        for j in largest:
            slope = (moved(site, j, 0.2) - moved(site, j, -0.2)) / 0.4
            assert found[site][j].item() == pytest.approx(slope, rel=0.02, abs=2e-4)
        assert max(abs(found[site][largest])) > 5e-3


def test_attribution_leaves_no_gradient_on_and_no_trace(tiny_models):
    model = tiny_models["gpt2"]
    trial = linear_trial()
    with torch.no_grad():
        before = attribution(trial)
    after = attribution(trial)
    assert all(torch.equal(before[site], after[site]) and not after[site].requires_grad for site in trial.sites)
    assert not any(weight.requires_grad for weight in model.bridge.original_model.parameters())
    assert not trial.start.requires_grad


# ---- beside the circuit ----------------------------------------------------------------------------


def test_comparison_in_words_and_back_from_json():
    scale = Scale(linear_trial())
    density = {site: torch.ones(12) for site in scale.runs.sites}
    members = {Site(0): (0, 1, 2), Site(1): (4, 5), Site(2): (6, 7)}
    found = compare_with_controls(scale, members, density, generator=torch.Generator().manual_seed(0), n=5)
    assert Controls.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    assert found.n_nodes == 7 and len(found.random) == 5
    text = "\n".join(found.lines())
    assert f"best of 5 random circuits of the same size and density {found.best_random.ablated}" in text
    assert ": above the best" in text and "NOT" not in text
    worse = compare_with_controls(scale, {Site(1): (9,)}, density, generator=torch.Generator().manual_seed(0), n=5)
    assert not worse.better and "NOT above the best" in worse.lines()[0]
    with user_error("nothing to compare", "no members"):
        compare_with_controls(scale, {Site(0): ()}, density, generator=torch.Generator())


# ---- the circuit found again -----------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    cause: str
    target: str
    effect: float = 1.0


def graph(text: str) -> list[Pair]:
    return [Pair(*arrow.split(">")) for arrow in text.split()]


def test_overlap_by_hand():
    assert overlap(graph("a>b b>c"), graph("a>b b>d")) == Overlap(edges=1 / 3, nodes=2 / 4)
    assert overlap(graph("a>b"), graph("b>a")) == Overlap(edges=0.0, nodes=1.0)
    assert overlap(graph("a>b a>b"), [Pair("a", "b", -3.0)]) == Overlap(1.0, 1.0)
    assert overlap([], []) == Overlap(1.0, 1.0) and overlap([], graph("a>b")) == Overlap(0.0, 0.0)


def test_stability_asks_once_per_seed_and_counts_what_is_found():
    asked, answers = [], {0: graph("a>b b>c"), 7: graph("a>b b>d"), 9: graph("a>b b>c")}

    def rediscover(seed: int) -> list[Pair]:
        asked.append(seed)
        return answers[seed]

    found = stability(rediscover, (0, 7, 9))
    assert asked == [0, 7, 9]
    assert [one.edges for one in found.overlaps] == pytest.approx([1 / 3, 1, 1 / 3])
    assert (found.always, found.ever, found.n_edges) == (1, 3, (2, 2, 2))
    assert found.mean.edges == pytest.approx(5 / 9) and found.mean.nodes == pytest.approx(2 / 3)
    assert "0.56 on average, 0.33 at least" in found.lines()[0] and "1 of 3 edges" in found.lines()[0]
    assert Stability.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("seeds", [(), (1,), (1, 1)])
def test_stability_needs_several_seeds(seeds):
    with user_error("at least two different seeds"):
        stability(lambda seed: [], seeds)
