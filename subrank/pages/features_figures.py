"""Figures of a feature card: where it is active, and what ablating it does to a logit."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from math import log10
from typing import TYPE_CHECKING

from circuits.features.card import Card
from editing.plotting import styled
from subrank.pages.page import visible_token

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; black and yellow left out
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_OTHER = "#b8bec8"
_LONGEST = 14
"""Characters of a token in a figure."""


def activation_figure(card: Card) -> "Figure | None":
    """Activations where the feature is active. Heights are logarithmic; within a bar colours share it by count."""
    if card.histogram is None:
        return None
    from plotly.graph_objects import Bar, Figure

    histogram = card.histogram
    total = [sum(counts) for counts in zip(histogram.other, *(bar.counts for bar in histogram.tokens), strict=True)]
    series = [(_named(bar.token), bar.counts, _COLOURS[i % len(_COLOURS)]) for i, bar in enumerate(histogram.tokens)]
    if any(histogram.other):
        series.append(("other tokens", histogram.other, _OTHER))
    figure = Figure()
    for name, counts, colour in series:
        figure.add_trace(
            Bar(
                x=_centres(histogram.edges),
                y=[log10(1 + whole) * n / max(1, whole) for n, whole in zip(counts, total, strict=True)],
                customdata=[(n, *edges) for n, edges in zip(counts, pairwise(histogram.edges), strict=True)],
                name=name,
                marker_color=colour,
                hovertemplate="%{customdata[0]:,} times in %{customdata[1]:.3g} – %{customdata[2]:.3g}",
            )
        )
    ticks = [10**power for power in range(len(str(max(total, default=1))) + 1)]
    zero = f"{histogram.zero:.1%}" if histogram.zero < 0.999 else f"{histogram.zero:.3%}"
    figure.update_layout(barmode="stack", bargap=0.04, title=f"activation (zero on {zero} of tokens)")
    figure.update_yaxes(
        title_text="tokens, log scale; colours: shares",
        tickvals=[0, *(log10(1 + n) for n in ticks)],
        ticktext=["0", *(f"{n:,}" for n in ticks)],
    )
    figure.update_xaxes(title_text="activation")
    return _small(figure)


def drops_figure(card: Card) -> "Figure | None":
    """What ablating the feature does to the logit of the token that it affects most."""
    if card.drops is None:
        return None
    from plotly.graph_objects import Bar, Figure

    drops = card.drops
    figure = Figure(
        Bar(
            x=_centres(drops.edges),
            y=list(drops.counts),
            width=[b - a for a, b in pairwise(drops.edges)],
            customdata=list(pairwise(drops.edges)),
            marker_color=_COLOURS[5] if drops.mean > 0 else _COLOURS[0],
            hovertemplate="%{y} positions with a change of %{customdata[0]:.3g} – %{customdata[1]:.3g}<extra></extra>",
        )
    )
    figure.add_vline(x=drops.mean, line={"color": "#374151", "width": 1, "dash": "dot"})
    direction = "raises" if drops.mean > 0 else "lowers"
    title = f"the feature {direction} the logit of “{_named(drops.token)}” by {abs(drops.mean):.2f} on average"
    figure.update_layout(bargap=0.04, title=title)
    figure.update_xaxes(title_text="logit − logit with the feature ablated")
    figure.update_yaxes(title_text="positions")
    return _small(figure)


def _named(token: str) -> str:
    """A token as a name in a figure, where quotes stay what they are: never empty, and not long."""
    name = visible_token(token.strip(" ") or repr(token))
    return escape(name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…", quote=False)


def _centres(edges: Sequence[float]) -> list[float]:
    return [(a + b) / 2 for a, b in pairwise(edges)]


def _small(figure: "Figure") -> "Figure":
    """The common look, with a title and the legend beside the plot, for two figures in a row."""
    styled(figure, height=290, top=36, size=12)
    figure.update_layout(title={"font": {"size": 13}, "x": 0, "xref": "paper", "y": 0.97})
    figure.layout.legend = {"font": {"size": 11}, "traceorder": "normal"}
    return figure
