"""Faithfulness against number of nodes."""

import json

import pytest

from circuits.scoring.node_curve import NodeCurve, node_counts, node_curve
from sae_core.codec import from_plain, to_plain
from sae_core.sites import FeatureId, Site


def test_a_curve_climbs_to_the_whole_circuit(planted):
    scale = planted.scale()
    order = [FeatureId(Site(layer), i) for layer, i in ((2, 6), (1, 5), (0, 2), (1, 4), (0, 0), (2, 7), (0, 1), (0, 3))]
    curve = node_curve(scale, order, "by hand", counts=(0, 2, 3, 8, 99))
    assert [p.n_nodes for p in curve.points] == [0, 2, 3, 8]
    two = 1.6 * planted.difference(2) / planted.difference(8)
    assert [p.ablated.value for p in curve.points] == pytest.approx([0, 0, two, 1], abs=1e-5)
    assert [p.kept.value for p in curve.points] == pytest.approx([0, 0, two, 1], abs=1e-5)
    assert curve.enough(0.5 * two) == 3 and curve.enough(0.99) == 8 and curve.enough(1.5) is None
    assert from_plain(NodeCurve, json.loads(json.dumps(to_plain(curve)))) == curve
    assert node_counts(20) == [0, 1, 2, 3, 4, 6, 8, 12, 16, 20] and node_counts(0) == [0]
