"""The page of feature cards shows what the cards say, and nothing of a text reaches it unescaped."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy
import pytest
import torch
from handmade import Zero, normal
from random_cards import contexts, full_cards, random_catalogue

from circuits.features.card import Card
from circuits.features.catalogue import read_catalogue
from circuits.features.survey import Survey
from sae_core.dictionaries.baselines import Basis
from sae_core.sites import FeatureId, Site
from subrank.pages.features_figures import activation_figure, drops_figure
from subrank.pages.features_page import card_html, cards_section
from subrank.pages.page import write_page

NASTY = ("<script>alert(1)</script>", '" onload="x', "שלום", "🙂", "\n", "</div>", "\u202eevil")


@pytest.fixture(scope="module")
def full(tiny_models) -> list[Card]:
    return full_cards(random_catalogue(tiny_models["neox"]), per_site=1)


class Structure(HTMLParser):
    """Tags in the order in which they open, with what events and links they carry."""

    def __init__(self):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}


def nasty(card: Card) -> Card:
    """The card with hostile tokens everywhere."""
    examples = tuple(
        replace(each, tokens=tuple(NASTY[i % len(NASTY)] for i in range(len(each.tokens)))) for each in card.examples
    )
    pairs = tuple((NASTY[i % len(NASTY)], 1.0) for i in range(len(card.promotes)))
    tokens = tuple(replace(bar, token=name) for name, bar in zip(NASTY, card.histogram.tokens, strict=False))
    return replace(
        card,
        examples=examples,
        promotes=pairs,
        suppresses=pairs,
        label=replace(card.label, context=NASTY[0]),
        rule=replace(card.rule, text=NASTY[0]),
        histogram=replace(card.histogram, tokens=tokens),
        drops=replace(card.drops, token=NASTY[0]),
    )


def test_hostile_tokens_are_shown_as_text(full, tmp_path):
    plain, hostile = Structure(), Structure()
    plain.feed(card_html(full[0]))
    body = card_html(nasty(full[0]))
    hostile.feed(body)
    assert hostile.tags == plain.tags and hostile.attributes == plain.attributes
    assert NASTY[0] not in body and "&lt;script&gt;" in body and "↵" in body and NASTY[2] in body
    write_page(tmp_path / "features.html", "Features", cards_section([nasty(full[0])]))
    page = (tmp_path / "features.html").read_text(encoding="utf-8")
    assert NASTY[0] not in page and "unicode-bidi: isolate" in page
    assert "[U+202E]evil" in page and not re.search(r"\u202e|\\u202e", page)


def test_the_page_shows_every_card_and_links_them(full):
    body = cards_section(full, {full[0].feature: full[1]})
    for card in full:
        assert body.count(f'id="{card.feature}"') == 1 and f'href="#{card.feature}"' in body
        assert f"{card.rule.score.correlation:.2f} ({card.rule.control.correlation:.2f})" in body
    assert body.count("plotly-graph-div") == 2 * (len(full) + 1) and "<details>" in body


def test_figures_say_what_the_card_says(full):
    card = full[0]
    bars = activation_figure(card).data
    counts = numpy.array([[row[0] for row in bar.customdata] for bar in bars])
    assert counts.sum() == round(card.density * card.n_tokens)
    heights = numpy.array([bar.y for bar in bars]).sum(0)
    assert heights == pytest.approx(numpy.log10(1 + counts.sum(0)).tolist())
    (drops,) = drops_figure(card).data
    assert list(drops.y) == list(card.drops.counts)
    light = replace(card, histogram=None, drops=None)
    assert activation_figure(light) is drops_figure(light) is None and "plotly" not in card_html(light)


def test_cards_without_a_label_and_of_negative_activations(tiny_models):
    text, basis = contexts(), Basis(torch.eye(32)[:3], normal(32))
    silent = read_catalogue(Survey(tiny_models["neox"], {Site(1): Zero(32)}), text, text)
    assert "no label" in card_html(next(silent.light(Site(1))))
    signed = read_catalogue(Survey(tiny_models["neox"], {Site(1): basis}), text, text)
    assert 'class="down"' in card_html(next(signed.full([FeatureId(Site(1), 1)])))
