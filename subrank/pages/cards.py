"""Feature cards as HTML: histograms, shaded examples, tables. All text of the model is escaped."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby, pairwise
from math import log10
from typing import TYPE_CHECKING, Any

from circuits.features.card import TOP, Card, Example
from circuits.features.explanations import Label
from sae_core.sites import FeatureId
from subrank.pages.page import plot, table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; black and yellow left out
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_OTHER = "#b8bec8"
_LONGEST = 14
"""Characters of a token in a figure."""
STYLE = """<style>
.card { border: 1px solid #e5e7eb; border-radius: 10px; padding: .4em 1.4em 1.2em; margin: 1.6em 0 }
.card { overflow-wrap: anywhere }
.card h3 { margin: .6em 0 .1em } .card h4 { margin: 1.1em 0 .3em; font-size: .95em; color: #374151 }
.card .says { font-size: 1.08em } .facts { color: #4b5563; font-size: .9em }
.kind { color: #6b7280; font-size: .85em; border: 1px solid #d1d5db; border-radius: 999px; padding: .05em .6em }
.example { line-height: 1.75; margin: .15em 0; padding: .1em 0; border-bottom: 1px solid #f3f4f6; font-size: .93em }
.example span, .tokens span { unicode-bidi: isolate; border-radius: 3px; padding: .08em .1em; white-space: pre-wrap }
.example .end { outline: 1.5px solid #b45309 } .strength { color: #6b7280; display: inline-block; min-width: 3.6em }
.tokens span { background: #f3f4f6; padding: .1em .45em; margin-right: .15em; display: inline-block }
.tokens b { font-weight: 400; color: #6b7280 }
.cards td { vertical-align: top; white-space: nowrap }
.cards td:last-child, .cards th:last-child { text-align: left; white-space: normal; overflow-wrap: anywhere }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1em }
@media (max-width: 760px) { .pair { grid-template-columns: minmax(0, 1fr) } }
</style>"""


def cards_section(
    cards: Sequence[Card],
    neurons: Mapping[FeatureId, Card] | None = None,
    sites: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """What the sites' labels are worth, a table that leads to every card, and the cards, those of neurons inside."""
    beside, linked = neurons or {}, {card.feature for card in cards}
    return (
        STYLE
        + (_sites(sites) if sites else "")
        + (_contents(cards) + _LEGEND if cards else "")
        + "".join(card_html(card, beside.get(card.feature), linked) for card in cards)
    )


def _sites(sites: Mapping[str, Mapping[str, Any]]) -> str:
    """The token tables of all latents, in numbers: medians over those that are alive, in brackets the controls."""
    names = ("precision", "recall", "correlation")
    rows = []
    for site, own in sites.items():
        medians = (f"{own['tokens_label'][name]:.2f} ({own['control'][name]:.2f})" for name in names)
        rows.append((site, f"{own['n_latents']:,}", f"{own['alive']:,}", *medians))
    note = (
        "Every feature has a light card, with a label made of the tokens on which it is active. Medians over the "
        "features of a site that are active on this text, scored on held-out contexts; in brackets, each label scored "
        "on another feature of its site."
    )
    return table(("site", "features", "alive", *names), rows) + f'<p class="note">{note}</p>'


_LEGEND = (
    '<p class="note">Labels are rules found on training contexts, by counting tokens or by cutting and substituting '
    "tokens and running the model again; precision, recall and correlation are theirs on held-out contexts: of the "
    "tokens where the rule expects the feature, the share where it is active; of those where it is active, the share "
    "that the rule expects; and Pearson's correlation of expected and true activation over all tokens. In brackets: "
    "the rules of other features of the site, scored on this one. In a pattern <code>*</code> is any token and "
    "<code>(a|b)</code> a choice; the rule speaks about the pattern's last token.</p>"
)


def _contents(cards: Sequence[Card]) -> str:
    rows = []
    for card in cards:
        cells = (f"{card.density:.3%}", *_scores(card.label))
        said = f"<td>{escape(_said(card.label))}</td>"
        rows.append(f"<tr><td>{_link(card.feature)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}{said}</tr>")
    head = ("feature", "density", "precision", "recall", "correlation", "label")
    return f'<table class="cards"><tr>{"".join(f"<th>{name}</th>" for name in head)}</tr>{"".join(rows)}</table>'


def _link(feature: FeatureId) -> str:
    return f'<a href="#{escape(str(feature))}">{escape(str(feature))}</a>'


def _said(label: Label | None) -> str:
    return label.text if label else "no label"


def _scores(label: Label | None) -> tuple[str, str, str]:
    if label is None:
        return ("–", "–", "–")
    pairs = (
        (getattr(of, name) for of in (label.score, label.control)) for name in ("precision", "recall", "correlation")
    )
    return tuple("{:.2f} ({:.2f})".format(*pair) for pair in pairs)


def card_html(
    card: Card, neuron: Card | None = None, linked: frozenset[FeatureId] | set[FeatureId] = frozenset()
) -> str:
    """One card; features in `linked` have theirs on the same page."""
    scores = dict(zip(("precision", "recall", "correlation"), _scores(card.label), strict=True))
    measured = ", ".join(f"{name} {value}" for name, value in scores.items())
    kind = f' <span class="kind">{card.label.kind}</span>' if card.label else ""
    parts = [
        f'<div class="card" id="{escape(str(card.feature))}"><h3>{escape(str(card.feature))}</h3>'
        f'<p class="says">{escape(_said(card.label))}{kind}</p>'
        f'<p class="facts">{measured}<br>{_facts(card)}</p>',
        _plots(card),
        _tokens("promotes", card.promotes) + _tokens("suppresses", card.suppresses),
        _near(card, linked),
        _examples(card),
    ]
    if neuron is not None:
        parts.append(
            f"<details><summary>Beside it the neuron whose axis is closest: {escape(neuron_name(neuron))}</summary>"
            f'<p class="says">{escape(_said(neuron.label))}</p><p class="facts">{_facts(neuron)}; '
            f"correlation of its label {_scores(neuron.label)[2]}</p>{_plots(neuron)}{_examples(neuron)}</details>"
        )
    return "".join(parts) + "</div>"


def neuron_name(card: Card) -> str:
    """The coordinate that a card of the neuron basis (`geometry.coordinates`) is of."""
    return f"coordinate {card.feature.index} of {card.feature.site}"


def _facts(card: Card) -> str:
    flags = ""
    if card.first_position >= 0.5:
        flags = f"; <b>{card.first_position:.0%} of it on contexts' first tokens</b>"
    return (
        f"active on {card.density:.3%} of {card.n_tokens:,} tokens; mean {card.mean_active:.3g} where active, at most "
        f"{card.max:.3g}; {card.norm_share:.2%} of the squared norm at {escape(str(card.feature.site))}{flags}"
    )


def _plots(card: Card) -> str:
    found = [figure for figure in (activation_figure(card), drops_figure(card)) if figure is not None]
    return f'<div class="pair">{"".join(f"<div>{plot(figure)}</div>" for figure in found)}</div>' if found else ""


def _tokens(verb: str, pairs: Sequence[tuple[str, float]]) -> str:
    shown = " ".join(f"<span>{_visible(token)} <b>{change:+.2f}</b></span>" for token, change in pairs)
    return f'<p class="tokens">directly {verb}: {shown}</p>' if pairs else ""


def _near(card: Card, linked: frozenset[FeatureId] | set[FeatureId]) -> str:
    if not card.near:
        return ""
    names = (
        f"{_link(feature) if feature in linked else escape(str(feature))} {cosine:.2f}" for feature, cosine in card.near
    )
    return f'<p class="facts">nearest by cosine: {", ".join(names)}</p>'


def _examples(card: Card) -> str:
    parts = []
    for group, members in groupby(card.examples, key=lambda one: one.group):
        name = "strongest" if group == TOP else f"from the {group} quantiles of its activation"
        parts.append(f"<h4>{escape(name)}</h4>" + "".join(example_html(one, card.max) for one in members))
    return "".join(parts)


def example_html(one: Example, full: float) -> str:
    """A text whose tokens are shaded by activation, fully at `full`; the chosen token is framed."""
    spans = []
    for place, (token, value) in enumerate(zip(one.tokens, one.activations, strict=True)):
        strength = min(1.0, abs(value) / full) if full else 0.0
        colour = f"rgba({'234,88,12' if value > 0 else '37,99,235'},{0.12 + 0.73 * strength:.2f})"
        style = f' style="background:{colour}" title="{value:.3g}"' if value else ""
        spans.append(f"<span{' class=end' if place == one.end else ''}{style}>{_visible(token)}</span>")
    joint = "" if any(token.startswith(" ") for token in one.tokens) else " "
    return f'<div class="example"><span class="strength">{one.activations[one.end]:.3g}</span>{joint.join(spans)}</div>'


def _visible(token: str) -> str:
    return escape(_plain(token))


def _plain(token: str) -> str:
    return token.replace("\n", "↵").replace("\t", "⇥").replace("\r", "↵")


# ---- figures ---------------------------------------------------------------------------------------


def activation_figure(card: Card) -> "Figure | None":
    """Activations where the feature is active. Heights are logarithmic; within a bar colours share it by count."""
    if card.histogram is None:
        return None
    from plotly.graph_objects import Bar, Figure

    own = card.histogram
    total = [sum(counts) for counts in zip(own.other, *(counts for _, counts in own.tokens), strict=True)]
    series = [(_named(token), counts, colour) for (token, counts), colour in zip(own.tokens, _COLOURS, strict=False)]
    if any(own.other):
        series.append(("other tokens", own.other, _OTHER))
    figure = Figure()
    for name, counts, colour in series:
        figure.add_trace(
            Bar(
                x=_centres(own.edges),
                y=[log10(1 + whole) * n / max(1, whole) for n, whole in zip(counts, total, strict=True)],
                customdata=[(n, *edges) for n, edges in zip(counts, pairwise(own.edges), strict=True)],
                name=name,
                marker_color=colour,
                hovertemplate="%{customdata[0]:,} times in %{customdata[1]:.3g} – %{customdata[2]:.3g}",
            )
        )
    ticks = [10**power for power in range(len(str(max(total, default=1))) + 1)]
    figure.update_layout(barmode="stack", bargap=0.04, title=f"activation (zero on {_percent(own.zero)} of tokens)")
    figure.update_yaxes(
        title_text="tokens, log scale",
        tickvals=[0, *(log10(1 + n) for n in ticks)],
        ticktext=["0", *(f"{n:,}" for n in ticks)],
    )
    figure.update_xaxes(title_text="activation")
    return _styled(figure)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.999 else f"{share:.3%}"


def _named(token: str) -> str:
    """A token as a name in a figure, where quotes stay what they are: never empty, and not long."""
    name = _plain(token.strip(" ") or repr(token))
    return escape(name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…", quote=False)


def _centres(edges: Sequence[float]) -> list[float]:
    return [(a + b) / 2 for a, b in pairwise(edges)]


def drops_figure(card: Card) -> "Figure | None":
    """What ablating the feature takes from the logit of the token that it affects most."""
    if card.drops is None:
        return None
    from plotly.graph_objects import Bar, Figure

    own = card.drops
    figure = Figure(
        Bar(
            x=_centres(own.edges),
            y=list(own.counts),
            width=[b - a for a, b in pairwise(own.edges)],
            customdata=list(pairwise(own.edges)),
            marker_color=_COLOURS[5] if own.mean > 0 else _COLOURS[0],
            hovertemplate="%{y} positions with a drop of %{customdata[0]:.3g} – %{customdata[1]:.3g}<extra></extra>",
        )
    )
    figure.add_vline(x=own.mean, line={"color": "#374151", "width": 1, "dash": "dot"})
    figure.update_layout(bargap=0.04, title=f"logit of “{_named(own.token)}” lost by ablation (mean {own.mean:+.2f})")
    figure.update_xaxes(title_text="logit − logit without the feature")
    figure.update_yaxes(title_text="positions")
    return _styled(figure)


def _styled(figure: "Figure") -> "Figure":
    figure.update_layout(
        template="plotly_white",
        height=290,
        margin={"l": 55, "r": 10, "t": 36, "b": 45},
        font={"family": "Helvetica, Arial, sans-serif", "size": 12},
        title={"font": {"size": 13}, "x": 0, "xref": "paper", "y": 0.97},
        legend={"font": {"size": 11}, "traceorder": "normal"},
    )
    return figure
