"""Graphs as JSON, and their nodes in order."""

import json

from circuits.features.feature_label import FeatureLabel
from circuits.graph import Edge, ErrorTerm, FeatureGraph, Node, Readout, nodes_of
from sae_core.codec import from_plain, to_plain
from sae_core.sites import FeatureId, Site, Stream


def test_json_of_other_nodes_and_of_an_empty_graph():
    mlp, logit, error = FeatureId(Site(1, Stream.MLP_OUT), 7), Readout("she - he"), ErrorTerm(Site(0))
    label = FeatureLabel('on "ü"', "→ <", 0.5, 0.1, ("<",))
    nodes = (Node(mlp, 0.25, 3, True, "a name", label), Node(logit), Node(error))
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
