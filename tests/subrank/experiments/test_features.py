"""Features that get full cards where none are named."""

from random_cards import SITES, random_catalogue

from subrank.experiments.features import drawn


def test_features_are_drawn_evenly_over_the_sites(tiny_models):
    catalogue = random_catalogue(tiny_models["neox"])
    six = drawn(catalogue, SITES, 6, least=20)
    assert six == sorted(six) and [sum(f.site == site for f in six) for site in SITES] == [2, 2, 1, 1]
    assert {f.site for f in drawn(catalogue, SITES[1:2], 5, least=20)} == {SITES[1]}
    everything = drawn(catalogue, SITES, 10**6, least=20)
    often = {f for f in everything if catalogue.tally.sites[f.site].active[f.index] >= 20}
    assert often == {*everything} and len(everything) == len(often) > 20
