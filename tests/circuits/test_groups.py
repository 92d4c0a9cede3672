"""Groups of a circuit's nodes: planted labelled graphs come back in the groups that were planted."""

import math
import random
from dataclasses import replace

import pytest

from circuits.features.feature_label import FeatureLabel
from circuits.graph import Edge, ErrorTerm, FeatureGraph, Node, NodeId, parse_node
from circuits.groups import Group, effects_between, groups_of, story_of
from circuits.influence import influence
from sae_core.sites import FeatureId, Site


def edge(cause: str, target: str, effect: float, null: float = 0.1) -> Edge:
    return Edge(parse_node(cause), parse_node(target), effect, 0.01, 4, 4, null=null)


def node(name: str, label: str = "") -> Node:
    return Node(parse_node(name), name=label)


def graph(labels: dict[str, str], *edges: Edge, target: str = "3_0") -> FeatureGraph:
    return FeatureGraph(parse_node(target), tuple(node(name, label) for name, label in labels.items()), edges)


def planted() -> FeatureGraph:
    """Two features for `(`, two for `inside`, two error terms, and one that nothing reads."""
    labels = {"3_0": "inside", "2_1": "inside", "2_2": "inside", "1_1": "(", "1_2": "(", "1_3": ")"}
    labels |= {"error.resid_post.2": "", "error.resid_post.1": ""}
    edges = (
        edge("2_1", "3_0", 0.5),
        edge("2_2", "3_0", -0.1),
        edge("error.resid_post.2", "3_0", 0.1),
        edge("1_1", "2_1", 0.4),
        edge("1_1", "2_2", 0.3),
        edge("1_2", "2_2", 0.2, null=0.5),
        edge("error.resid_post.1", "2_1", 0.05, null=0.5),
    )
    return graph(labels, *edges)


def many(rng: random.Random, n_layers: int, n: int, n_labels: int) -> FeatureGraph:
    """A graph of `n` features below the target, each with an effect on ten of the layer above."""
    below = [FeatureId(Site(i % n_layers), i) for i in range(n)]
    target = FeatureId(Site(n_layers), 0)
    nodes = [Node(target, name="target")] + [Node(id, name=f"label {rng.randrange(n_labels)}") for id in below]
    edges = []
    for id in below:
        above: list[NodeId] = [other for other in below if other.site.layer == id.site.layer + 1]
        for other in rng.sample(above, min(10, len(above))) or [target]:
            edges.append(Edge(id, other, rng.uniform(-1, 1), 0.01, 4, 4))
    return FeatureGraph(target, tuple(nodes), tuple(edges))


def named(groups) -> dict[str, set[str]]:
    return {group.name: {str(node) for node in group.nodes} for group in groups}


# ---- groups ----------------------------------------------------------------------------------------


def test_nodes_of_one_label_and_layer_are_a_group_and_errors_are_one():
    """The target stays alone, though others have its label; a label of two layers is two groups."""
    groups = groups_of(planted())
    assert named(groups) == {
        "inside (layer 3)": {"3_0"},
        "inside (layer 2)": {"2_1", "2_2"},
        "( (layer 1)": {"1_1", "1_2"},
        ") (layer 1)": {"1_3"},
        "error terms (layers 1-2)": {"error.resid_post.1", "error.resid_post.2"},
    }
    assert groups[0].nodes == (planted().target,)
    alone = replace(planted(), nodes=tuple(replace(each, name="inside") for each in planted().nodes))
    assert len(groups_of(alone)) == 4  # a label that all share leaves layers apart


def test_nodes_are_called_by_their_labels_or_ids():
    label = FeatureLabel("inside ( …", "", 0.9, 0.1)
    nodes = (Node(parse_node("3_0")), *(Node(parse_node(name), label=label) for name in ("2_0", "2_1")))
    assert [group.label for group in groups_of(FeatureGraph(nodes[0].id, nodes, ()))] == ["3_0", "inside ( …"]


def test_effects_of_groups_are_the_sums_of_their_edges():
    """By hand; a group's effect may be zero though its edges are not, and no effect within a group is counted."""
    circuit = planted()
    groups = {group.name: group for group in groups_of(circuit)}
    between = {(e.cause.name, e.target.name): e for e in effects_between(tuple(groups.values()), circuit.edges)}
    sums = {names: (round(e.effect, 12), e.n_edges, e.solid) for names, e in between.items()}
    assert sums == {
        ("inside (layer 2)", "inside (layer 3)"): (0.4, 2, True),
        ("error terms (layers 1-2)", "inside (layer 3)"): (0.1, 1, False),
        ("( (layer 1)", "inside (layer 2)"): (0.9, 3, True),
        ("error terms (layers 1-2)", "inside (layer 2)"): (0.05, 1, False),
    }
    together = Group("all", tuple(each.id for each in circuit.nodes))
    assert effects_between((together,), circuit.edges) == ()


# ---- stories ---------------------------------------------------------------------------------------


def test_a_small_graph_is_told_whole():
    story = story_of(planted())
    assert named(story.left_out) == {") (layer 1)": {"1_3"}} and story.influence == 1  # nothing reads it
    assert len(story.groups) == 4 and story.n_within == 0
    assert story.groups[0].nodes == (planted().target,)


def test_alike_groups_of_neighbouring_layers_are_joined_where_there_are_too_many():
    labels = {"3_0": "end", "2_1": "inside", "1_1": "inside", "0_1": "("}
    chain = (edge("2_1", "3_0", 0.5), edge("1_1", "2_1", 0.5), edge("0_1", "1_1", 0.5))
    story = story_of(graph(labels, *chain), most=3)
    assert set(named(story.groups)) == {"end (layer 3)", "inside (layers 1-2)", "( (layer 0)"}
    assert story.n_within == 1 and not story.left_out and story.influence == 1
    assert {(e.cause.label, e.target.label): e.effect for e in story.edges} == {
        ("inside", "end"): 0.5,
        ("(", "inside"): 0.5,
    }
    apart = graph(labels | {"1_9": "of no effect"}, *chain)
    assert len(story_of(apart, most=4).groups) == 4  # there is room: what reaches nothing takes none


def test_no_group_is_joined_around_another():
    """1_1 acts on 3_1 through another label: as one box, the two would have arrows out of and into themselves."""
    labels = {"4_0": "end", "3_1": "a", "2_1": "b", "2_2": "a", "1_1": "a"}
    edges = (edge("3_1", "4_0", 0.5), edge("2_1", "3_1", 0.5), edge("1_1", "2_1", 0.5), edge("2_2", "3_1", 0.5))
    story = story_of(graph(labels, *edges, target="4_0"), most=2)
    assert {"a (layers 1-2)", "a (layers 2-3)"} & set(named(story.groups + story.left_out))
    assert "a (layers 1-3)" not in named(story.groups + story.left_out)


def test_the_strongest_groups_are_kept_and_the_rest_is_counted():
    """Of three causes two fit: 5/6 of the influence; the third has 1/6, and what acts on it alone 1/6 again."""
    labels = {"3_0": "t", "2_1": "a", "2_2": "b", "2_3": "c", "1_1": "d"}
    edges = (edge("2_1", "3_0", -0.3), edge("2_2", "3_0", 0.2), edge("2_3", "3_0", 0.1), edge("1_1", "2_3", 1.0))
    story = story_of(graph(labels, *edges), most=3)
    assert [group.label for group in story.groups] == ["t", "a", "b"]
    assert {group.label for group in story.left_out} == {"c", "d"}
    assert math.isclose(story.influence, (5 / 6) / (5 / 6 + 1 / 6 + 1 / 6))


@pytest.mark.parametrize(("seed", "most"), [(seed, 1 + seed % 9) for seed in range(18)])
def test_any_graph_becomes_a_connected_story_of_at_most_so_many_boxes(seed, most):
    """Whatever order nodes and edges come in; every shown edge is the exact sum, and every box reaches the target."""
    rng = random.Random(seed)
    circuit = many(rng, 4, 24, 6)
    story = story_of(circuit, most)
    assert len(story.groups) <= most and story.groups[0].nodes == (circuit.target,)
    every = [node for group in story.groups + story.left_out for node in group.nodes]
    assert sorted(map(str, every)) == sorted(str(each.id) for each in circuit.nodes)
    assert len({group.name for group in story.groups + story.left_out}) == len(story.groups + story.left_out)
    for drawn in story.edges:
        summed = [e.effect for e in circuit.edges if e.cause in drawn.cause.nodes and e.target in drawn.target.nodes]
        assert drawn.effect == math.fsum(summed) and drawn.n_edges == len(summed)
    assert {edge.cause for edge in story.edges} == set(story.groups[1:])
    nodes, edges = list(circuit.nodes), list(circuit.edges)
    rng.shuffle(nodes)
    rng.shuffle(edges)
    again = story_of(replace(circuit, nodes=tuple(nodes), edges=tuple(edges)), most)
    assert (again.groups, again.left_out, again.n_within) == (story.groups, story.left_out, story.n_within)


@pytest.mark.parametrize("n_labels", [5, 80, 1000])
def test_300_nodes_become_eight_boxes(n_labels):
    assert len(story_of(many(random.Random(0), 6, 300, n_labels)).groups) == 8


# ---- influence -------------------------------------------------------------------------------------


def test_influence_goes_over_all_paths_and_ends():
    """By hand: 3/4 and 1/4 into the target, all of both from below; a circle, which no circuit has, ends too."""
    a, b, low, target = map(parse_node, ("2_1", "2_2", "1_1", "3_0"))
    weights = {(a, target): -3.0, (b, target): 1.0, (low, a): 0.1, (low, b): 5.0}
    assert influence(target, weights) == {a: 0.75, b: 0.25, low: 1.0}
    assert influence(target, weights | {(ErrorTerm(Site(0)), parse_node("0_9")): 1.0}) == {a: 0.75, b: 0.25, low: 1.0}
    assert set(influence(target, weights | {(a, low): 1.0})) >= {a, b, low}
