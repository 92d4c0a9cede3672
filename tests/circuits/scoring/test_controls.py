"""Controls: which circuits are drawn at random, and how much two graphs have in common."""

import json

import pytest
import torch
from planted_circuit import TRUE, linear_runs
from tiny import user_error

from circuits.graph import Edge, Readout
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
from sae_core.codec import from_plain, to_plain
from sae_core.sites import Site

DENSITY = {Site(0): torch.logspace(-4, -1, 60), Site(1): torch.logspace(-3, 0, 60)}


def drawn(seed: int = 0, n: int = 20, members=None, density=DENSITY):
    members = members or {Site(0): (5, 30), Site(1): (50,), Site(2): ()}
    return random_circuits(members, density, n, generator=torch.Generator().manual_seed(seed))


def test_random_circuits_have_the_size_and_the_density_of_the_members_and_none_of_them():
    circuits = drawn()
    assert len(circuits) == 20 and len({str(draw) for draw in circuits}) > 10
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


def test_random_circuits_of_the_same_size_are_not_faithful(planted):
    density = {site: torch.ones(12) for site in TRUE}
    controls = compare_with_controls(planted.scale(), TRUE, density, generator=torch.Generator().manual_seed(0))
    assert controls.circuit.ablated.value == pytest.approx(1, abs=1e-5)
    assert controls.first_order.ablated.value == pytest.approx(1, abs=1e-5)  # linear: attribution sees all of it
    assert len(controls.random) == 20 and controls.better
    assert controls.best_random.ablated.value == pytest.approx(0, abs=1e-5)


def test_comparison_in_words_and_back_from_json():
    scale = Scale(linear_runs())
    density = {site: torch.ones(12) for site in scale.runs.sites}
    members = {Site(0): (0, 1, 2), Site(1): (4, 5), Site(2): (6, 7)}
    controls = compare_with_controls(scale, members, density, generator=torch.Generator().manual_seed(0), n=5)
    assert from_plain(Controls, json.loads(json.dumps(to_plain(controls), allow_nan=False))) == controls
    assert controls.n_nodes == 7 and len(controls.random) == 5
    text = "\n".join(controls.lines())
    assert f"best of 5 random circuits of the same size and density {controls.best_random.ablated}" in text
    assert ": above the best" in text and "NOT" not in text
    worse = compare_with_controls(scale, {Site(1): (9,)}, density, generator=torch.Generator().manual_seed(0), n=5)
    assert not worse.better and "NOT above the best" in worse.lines()[0]
    with user_error("nothing to compare", "no members"):
        compare_with_controls(scale, {Site(0): ()}, density, generator=torch.Generator())


def edge(cause: str, target: str, effect: float = 1.0) -> Edge:
    return Edge(Readout(cause), Readout(target), effect, error=0.0, n_active=1, n_examples=1)


def graph(text: str) -> list[Edge]:
    return [edge(*pair.split(">")) for pair in text.split()]


def test_overlap_by_hand():
    assert overlap(graph("a>b b>c"), graph("a>b b>d")) == Overlap(edges=1 / 3, nodes=2 / 4)
    assert overlap(graph("a>b"), graph("b>a")) == Overlap(edges=0.0, nodes=1.0)
    assert overlap(graph("a>b a>b"), [edge("a", "b", -3.0)]) == Overlap(1.0, 1.0)
    assert overlap([], []) == Overlap(1.0, 1.0) and overlap([], graph("a>b")) == Overlap(0.0, 0.0)


def test_stability_asks_once_per_seed_and_counts_what_is_found():
    seeds, answers = [], {0: graph("a>b b>c"), 7: graph("a>b b>d"), 9: graph("a>b b>c")}

    def rediscover(seed: int) -> list[Edge]:
        seeds.append(seed)
        return answers[seed]

    result = stability(rediscover, (0, 7, 9))
    assert seeds == [0, 7, 9]
    assert [draw.edges for draw in result.overlaps] == pytest.approx([1 / 3, 1, 1 / 3])
    assert (result.always, result.ever, result.n_edges) == (1, 3, (2, 2, 2))
    assert result.mean.edges == pytest.approx(5 / 9) and result.mean.nodes == pytest.approx(2 / 3)
    assert "0.56 on average, 0.33 at least" in result.lines()[0] and "1 of 3 edges" in result.lines()[0]
    assert from_plain(Stability, json.loads(json.dumps(to_plain(result)))) == result


@pytest.mark.parametrize("seeds", [(), (1,), (1, 1)])
def test_stability_needs_several_seeds(seeds):
    with user_error("at least two different seeds"):
        stability(lambda seed: [], seeds)
