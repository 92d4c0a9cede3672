"""Features that get full cards: those that are named, or some that are drawn."""

from types import SimpleNamespace

from random_cards import SITES, random_catalogue
from tiny import user_error

from subrank.experiments.features import chosen_features, drawn
from subrank.settings.experiments import FeatureSettings
from subrank.settings.fields import make


def test_what_is_read_only_of_features_that_are_drawn_does_not_go_with_named_ones():
    saes = SimpleNamespace(ids=list, at=lambda site: None)
    for ignored in ({"full": 3}, {"full": 0}, {"site": "resid_post.1"}):
        with user_error("--features", f"--{next(iter(ignored))}", "exclude each other"):
            chosen_features(saes, ["1_2"], make(FeatureSettings, ignored))
        assert chosen_features(saes, [], make(FeatureSettings, ignored)) == []
    for read in ({}, {"quick": True}, {"contexts": 8, "neurons": True}):
        assert chosen_features(saes, ["1_2"], make(FeatureSettings, read)) == ["1_2"]


def test_features_are_drawn_evenly_over_the_sites(tiny_models):
    catalogue = random_catalogue(tiny_models["neox"])
    six = drawn(catalogue, SITES, 6, least=20)
    assert six == sorted(six) and [sum(f.site == site for f in six) for site in SITES] == [2, 2, 1, 1]
    assert {f.site for f in drawn(catalogue, SITES[1:2], 5, least=20)} == {SITES[1]}
    everything = drawn(catalogue, SITES, 10**6, least=20)
    often = {f for f in everything if catalogue.tally.sites[f.site].active[f.index] >= 20}
    assert often == {*everything} and len(everything) == len(often) > 20
