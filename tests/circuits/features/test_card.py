"""Cards: every number is that of a plain computation, light or full."""

import json

import pytest
import torch
from handmade import Zero, normal
from random_cards import SITES, codes, contexts, full_cards, random_catalogue
from tiny import user_error

from circuits.features.card import TOP, Card, spots
from circuits.features.catalogue import read_catalogue
from circuits.features.survey import Survey
from sae_core.dictionaries.baselines import Basis
from sae_core.sites import FeatureId, Site

KEYS = (
    "id site index density mean_active max first_position on_outliers norm_share n_tokens label rule examples "
    "histogram drops promotes suppresses near"
).split()


def test_json_has_the_fixed_form(catalogue, full):
    light = [card for site in SITES for card in catalogue.light(site)]
    assert len(light) == 48 * len(SITES)
    for card in [*light, *full]:
        value = json.loads(json.dumps(card.to_json(), allow_nan=False))
        assert list(value) == KEYS
        assert FeatureId.parse(value["id"]) == card.feature
        for example in value["examples"]:
            assert list(example) == ["group", "tokens", "activations", "end"]
            assert len(example["tokens"]) == len(example["activations"]) > example["end"]
        if value["rule"]:
            rule = dict(value["rule"])
            assert list(rule.pop("control")) == ["precision", "recall", "correlation"]
            assert list(rule) == ["text", "kind", "precision", "recall", "correlation"]
            assert rule["kind"] in ("pattern", "tokens") and isinstance(rule["text"], str)
            assert value["label"]["short"] and value["label"]["lines"]
    for card in full:
        value = card.to_json()
        assert list(value["histogram"]) == ["edges", "tokens", "other", "zero"]
        assert list(value["drops"]) == ["token", "edges", "counts", "mean"]
        assert value["near"] and all(list(neighbour) == ["id", "cosine"] for neighbour in value["near"])
    assert all(card.histogram is None and card.drops is None for card in light)


def test_light_and_full_cards_agree(catalogue, full):
    light = {card.feature: card for site in SITES for card in catalogue.light(site)}
    for card in full:
        other = light[card.feature]
        for name in ("density", "mean_active", "max", "first_position", "norm_share", "n_tokens"):
            assert getattr(card, name) == getattr(other, name)
        assert [token for token, _ in card.promotes][:4] == [token for token, _ in other.promotes]
        top = next(example for example in card.examples if example.group == TOP)
        assert (
            max(top.activations)
            == pytest.approx(card.max, rel=1e-5)
            == other.examples[0].activations[other.examples[0].end]
        )
        assert 0 < len(other.examples) <= 4


def test_a_dead_latent_has_an_empty_light_card_and_no_full_one(tiny_models):
    text = contexts()
    catalogue = read_catalogue(Survey(tiny_models["neox"], {Site(1): Zero(32)}), text, text)
    (card,) = catalogue.light(Site(1))
    assert (card.density, card.max, card.label, card.rule, card.examples) == (0, 0, None, None, ())
    with user_error("1_0 is never active", "choose another feature"):
        list(catalogue.full([FeatureId(Site(1), 0)]))


def test_features_that_are_not_there_are_refused(catalogue):
    for feature, words in (
        (FeatureId(Site(1), 48), ("1_48", "has 48")),
        (FeatureId(Site(7), 0), ("7_0", "no dictionary")),
    ):
        with user_error(*words):
            list(catalogue.full([feature]))
    with user_error("none twice"):
        list(catalogue.full([FeatureId(Site(1), 1)] * 2))


def test_cards_of_earlier_versions_are_read_with_their_labels_as_rules(full):
    value = full[0].to_json()
    value["label"] = value.pop("rule")
    card = Card.from_json(value)
    assert card.label is None and card.rule == full[0].rule


@pytest.mark.slow
def test_the_same_seed_gives_the_same_cards(catalogue, full):
    features = [card.feature for card in full[:2]]
    first, second = ([card.to_json() for card in catalogue.full(features)] for _ in range(2))
    assert first == second and not list(catalogue.full([]))
    for value, card in zip(first, full, strict=False):  # only the control depends on who else is asked for
        value["rule"]["control"] = card.to_json()["rule"]["control"]
        assert value == card.to_json()


def test_a_dictionary_with_negative_codes_has_cards(tiny_models):
    """Signed coordinates are active nearly everywhere; their range reaches below zero."""
    text = contexts()
    basis = Basis(torch.eye(32)[:3], normal(32))
    catalogue = read_catalogue(Survey(tiny_models["neox"], {Site(1): basis}), text, text)
    (card,) = catalogue.full([FeatureId(Site(1), 1)])
    f = codes(catalogue, Site(1))[..., 1]
    assert card.histogram.edges[0] == pytest.approx(f.min().item()) and card.histogram.edges[0] < 0
    assert card.density == 1 and card.max == pytest.approx(f.max().item())


def test_examples_are_peaks_and_places_of_each_quarter(catalogue):
    feature = FeatureId(
        SITES[1], max(catalogue.alive(SITES[1]), key=lambda i: codes(catalogue, SITES[1])[..., i].sum())
    )
    f = codes(catalogue, feature.site)[..., feature.index]
    picks = spots(f, catalogue.training, top=3, per_quarter=2, generator=torch.Generator().manual_seed(0))
    assert len({spot.context for spot in picks}) == len(picks) == len({(spot.context, spot.position) for spot in picks})
    values = [f[spot.context, spot.position].item() for spot in picks]
    peaks = f.max(1).values.sort(descending=True).values
    assert values[:3] == peaks[:3].tolist() and [spot.group for spot in picks[:3]] == [TOP] * 3
    active = f[f > 0].sort().values
    for spot, value in zip(picks[3:], values[3:], strict=True):
        low, high = (float(part) for part in spot.group.split("-"))
        assert active[int(len(active) * low)] <= value <= active[max(0, int(len(active) * high) - 1)]
    assert {spot.group for spot in picks[3:]} >= {"0.75-1.0", "0.0-0.25"}


def test_texts_that_end_alike_count_once():
    text = torch.tensor([[1, *range(10, 20)], [2, *range(10, 20)], [3, *range(30, 40)]])
    f = torch.zeros(3, 11)
    f[:, 10] = torch.tensor([3.0, 2.0, 1.0])
    chosen = spots(f, text, top=3, per_quarter=0, generator=torch.Generator())
    assert [spot.context for spot in chosen] == [0, 2]


@pytest.mark.slow
def test_cards_are_read_back_from_their_json(tiny):
    catalogue = random_catalogue(tiny)
    for card in [*full_cards(catalogue), next(catalogue.light(SITES[0]))]:
        assert Card.from_json(json.loads(json.dumps(card.to_json()))).to_json() == card.to_json()
