"""The page of `subrank features`: a table that leads to every card, and the cards."""

from collections.abc import Mapping, Sequence, Set
from itertools import groupby
from typing import Any

from markupsafe import Markup

from circuits.features.card import TOP, Card, Example
from circuits.features.explanations import ScoredRule
from sae_core.sites import FeatureId
from subrank.pages.features_figures import activation_figure, drops_figure
from subrank.pages.page import MISSING, Cell, Table, Token, figure, render

_SCORES = ("precision", "recall", "correlation")
NO_LABEL = "no label"


def cards_section(
    cards: Sequence[Card],
    neurons: Mapping[FeatureId, Card] | None = None,
    sites: Mapping[str, Mapping[str, Any]] | None = None,
) -> Markup:
    """What the sites' labels are worth, a table that leads to every card, and the cards, those of neurons inside."""
    neurons, linked = neurons or {}, {card.feature for card in cards}
    return render(
        "features.html",
        sites=_sites_table(sites) if sites else None,
        contents=_contents(cards) if cards else None,
        cards=[card_html(card, neurons.get(card.feature), linked) for card in cards],
    )


def _sites_table(sites: Mapping[str, Mapping[str, Any]]) -> Table:
    """The token tables of all latents, in numbers: medians over those that are alive, in brackets the controls."""
    rows = []
    for site, labels in sites.items():
        medians = (f"{labels['tokens_label'][name]:.2f} ({labels['control'][name]:.2f})" for name in _SCORES)
        rows.append((site, f"{labels['n_latents']:,}", f"{labels['alive']:,}", *medians))
    return Table(("site", "features", "alive", *_SCORES), rows)


def _contents(cards: Sequence[Card]) -> Table:
    rows = [
        (
            Cell(str(card.feature), link=f"#{card.feature}"),
            f"{card.density:.3%}",
            *_scores(card.rule),
            ", ".join(card.label.lines) if card.label else NO_LABEL,
        )
        for card in cards
    ]
    return Table(("feature", "density", *_SCORES, "label"), rows, prose=True)


def _scores(rule: ScoredRule | None) -> tuple[str, ...]:
    """Each score of a rule, in brackets what the rules of other features score."""
    if rule is None:
        return (MISSING,) * len(_SCORES)
    return tuple(f"{getattr(rule.score, name):.2f} ({getattr(rule.control, name):.2f})" for name in _SCORES)


def card_html(card: Card, neuron: Card | None = None, linked: Set[FeatureId] = frozenset()) -> Markup:
    """A card, with that of the closest neuron inside; features in `linked` have theirs on the same page."""
    return render(
        "card.html",
        card=_card(card),
        neuron=None if neuron is None else _card(neuron) | {"name": neuron_name(neuron)},
        near=[(str(feature), f"{cosine:.2f}", feature in linked) for feature, cosine in card.near],
    )


def neuron_name(card: Card) -> str:
    """The coordinate that a card of the neuron basis (`geometry.coordinates`) is of."""
    return f"coordinate {card.feature.index} of {card.feature.site}"


def _card(card: Card) -> dict[str, Any]:
    """What the template shows of a card."""
    scores = dict(zip(_SCORES, _scores(card.rule), strict=True))
    groups = groupby(card.examples, key=lambda example: example.group)
    logits = {"promotes": card.promotes, "suppresses": card.suppresses}
    return {
        "feature": str(card.feature),
        "label": card.label.lines if card.label else (NO_LABEL,),
        "rule": card.rule.text if card.rule else "",
        "kind": str(card.rule.kind) if card.rule else "",
        "scores": ", ".join(f"{name} {value}" for name, value in scores.items()),
        "correlation": scores["correlation"],
        "numbers": (
            f"active on {card.density:.3%} of {card.n_tokens:,} tokens; mean {card.mean_active:.3g} where active, at "
            f"most {card.max:.3g}; {card.norm_share:.2%} of the squared norm at {card.feature.site}"
        ),
        "at_start": f"{card.first_position:.0%}" if card.first_position >= 0.5 else "",
        "on_outliers": f"{card.on_outliers:.0%}" if card.on_outliers >= 0.5 else "",
        "plots": [figure(plot) for plot in (activation_figure(card), drops_figure(card)) if plot is not None],
        "logits": {
            verb: [(token, f"{change:+.2f}") for token, change in pairs] for verb, pairs in logits.items() if pairs
        },
        "examples": [(_group(group), [_example(member, card.max) for member in members]) for group, members in groups],
    }


def _group(name: str) -> str:
    return "strongest" if name == TOP else f"from the {name} quantiles of its activation"


def _example(example: Example, most: float) -> dict[str, Any]:
    """A text whose tokens are shaded by activation, fully at `most`; the chosen token is framed."""
    tokens = [
        Token(token, max(-1.0, min(1.0, value / most)) if most else 0.0, f"{value:.3g}", framed=place == example.end)
        for place, (token, value) in enumerate(zip(example.tokens, example.activations, strict=True))
    ]
    return {"value": f"{example.activations[example.end]:.3g}", "tokens": tokens}
