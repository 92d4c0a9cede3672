"""Labels in words: what a list and a box show of them, and their JSON."""

import json

from circuits.features.feature_label import FeatureLabel
from circuits.graph import FeatureGraph, Node
from sae_core.codec import from_plain, to_plain
from sae_core.sites import FeatureId, Site

CLEAR = FeatureLabel("inside ( …", '→ ")" 8/8', 0.93, 0.2)


def test_a_box_shows_context_output_and_score():
    assert CLEAR.short == "inside ( …" and CLEAR.lines == ("inside ( …", '→ ")" 8/8', "F1 0.93")


def test_a_label_no_better_than_its_control_is_unclear():
    unclear = FeatureLabel("inside ( …", '→ ")"', 0.29, 0.2)
    assert unclear.short == "unclear" and unclear.lines == ("unclear", '→ ")"')
    assert Node(FeatureId(Site(1), 7), name="brackets", label=unclear).title == "brackets"
    assert FeatureLabel().lines == ("unclear",)


def test_labels_and_graphs_come_back_from_json_and_older_graphs_are_read_without():
    assert FeatureLabel.from_json(json.loads(json.dumps(CLEAR.to_json()))) == CLEAR
    feature = FeatureId(Site(1), 7)
    graph = FeatureGraph(feature, (Node(feature, label=CLEAR),), ())
    plain = json.loads(json.dumps(to_plain(graph)))
    assert from_plain(FeatureGraph, plain) == graph
    del plain["nodes"][0]["label"]
    plain["nodes"][0] |= {"responds_to": ["(", "["], "promotes": [")"], "name": "brackets"}
    earlier = from_plain(FeatureGraph, plain).nodes[0]
    assert earlier.label is None and earlier.title == "brackets"
