"""Neighbours of a feature, and the neurons' axes."""

import torch
from handmade import normal, random_topk
from random_cards import SITES, dictionaries

from circuits.features.geometry import coordinates, nearest
from sae_core.sites import FeatureId, Site, Stream


def test_neighbours_are_the_largest_cosines_of_its_own_and_the_adjacent_layers():
    saes = dictionaries() | {Site(1, Stream.MLP_HIDDEN): random_topk(64)}
    feature = FeatureId(Site(1), 5)
    neighbours = nearest(saes, feature, 2)
    direction = saes[feature.site].directions[5]
    expected = []
    for site in SITES:
        cosine = saes[site].directions @ direction
        ranked = [int(i) for i in cosine.argsort(descending=True) if (site, int(i)) != (feature.site, 5)]
        expected += [(FeatureId(site, i), cosine[i].item()) for i in ranked[:2]]
    expected.sort(key=lambda pair: -pair[1])
    assert [f for f, _ in neighbours] == [f for f, _ in expected]
    assert {f.site for f, _ in nearest(saes, FeatureId(Site(0), 1))} == set(SITES) - {Site(2)}
    assert {f.site for f, _ in nearest(saes, FeatureId(Site(1, Stream.MLP_HIDDEN), 1))} == {Site(1, Stream.MLP_HIDDEN)}


def test_neurons_are_coordinates_of_both_signs():
    basis, x = coordinates(random_topk(32).directions), normal(5, 32)
    assert torch.equal(basis.encode(x), torch.cat([x.relu(), (-x).relu()], 1))
    torch.testing.assert_close(basis.decode(basis.encode(x)), x)
