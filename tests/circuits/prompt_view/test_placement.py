"""A circuit's features where they act on a prompt, and which edges join these places."""

from circuits.graph import Edge, ErrorTerm, FeatureGraph, Node, Readout
from circuits.prompt_view.placement import PlacedEdge, placed
from circuits.prompt_view.prompt_features import ActiveFeature, Cell, PromptFeatures, PromptToken
from sae_core.sites import FeatureId, Site

A, B, C = FeatureId(Site(0), 1), FeatureId(Site(1), 2), FeatureId(Site(1), 9)
LOGIT = Readout("she - he")


def prompt(active: dict[FeatureId, list[int]], n: int = 5) -> PromptFeatures:
    """A prompt of `n` tokens with features active at some."""
    cells = []
    for site in (Site(0), Site(1)):
        for position in range(1, n):
            here = [f for f, places in active.items() if f.site == site and position in places]
            features = tuple(ActiveFeature(feature, 1.0, 0.0, 0.0) for feature in here)
            cells.append(Cell(site, position, len(here), 1.0, 0.5, 0.0, False, features))
    tokens = tuple(PromptToken("x", p == 0, None, (), "y") for p in range(n))
    return PromptFeatures(tokens, tuple(cells), "logit", 1.0, 0.5)


def graph(*edges: Edge) -> FeatureGraph:
    ends = dict.fromkeys(end for edge in edges for end in (edge.cause, edge.target))
    return FeatureGraph(LOGIT, tuple(map(Node, ends)), edges)


def edge(cause, target, effect=0.5, offsets=()) -> Edge:
    return Edge(cause, target, effect, 0.1, 8, 8, offsets=offsets)


def test_an_edge_comes_from_the_nearest_place_before_or_from_its_offsets():
    view = prompt({A: [1, 3], B: [2, 4]})
    near = placed(graph(edge(A, B)), view)
    assert [(each.position, each.target_position) for each in near.edges] == [(1, 2), (3, 4)]
    by_offset = placed(graph(edge(A, B, offsets=((3, 0.4), (7, 0.1)))), view)
    assert [(each.position, each.target_position) for each in by_offset.edges] == [(1, 2), (1, 4)]


def test_nothing_comes_from_later_tokens_or_from_what_is_not_active():
    assert placed(graph(edge(A, B)), prompt({A: [3], B: [2]})).edges == ()
    silent = placed(graph(edge(A, B), edge(C, LOGIT)), prompt({A: [1]}))
    assert silent.places == {A: (1,)} and silent.n_features == 3 and silent.edges == ()


def test_a_readout_stands_at_the_end_and_error_terms_nowhere():
    view = prompt({A: [1, 2], B: [2]})
    edges = (edge(A, LOGIT, 0.1), edge(B, LOGIT, -0.9), edge(ErrorTerm(Site(0)), B))
    circuit = placed(graph(*edges), view)
    assert circuit.edges == (PlacedEdge(B, 2, None, 4, -0.9), PlacedEdge(A, 2, None, 4, 0.1))
    assert (circuit.n_features, circuit.n_edges, circuit.target) == (2, 2, "logit: she - he")


def test_features_that_are_not_the_circuits_have_no_place():
    assert placed(graph(edge(A, B)), prompt({A: [1], B: [1], C: [1, 2]})).places == {A: (1,), B: (1,)}
