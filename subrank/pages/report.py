"""What `subrank evaluate` found, as numbers and as a page: sets side by side at every site."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from editing.loss_recovered import Hurt, Loss, SpliceReport
from sae_core.evaluation.reconstruction import Profile
from sae_core.evaluation.similarity import Likeness
from sae_core.sites import Site
from subrank.pages.page import plot, table

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_COLOURS = ("#1b4f9c", "#d97706", "#10b981", "#b3261e", "#7c3aed", "#0891b2", "#6b7280", "#db2777")
_STYLE = """<style>
.figures { overflow-x: auto; font-size: .86em } .figures td { white-space: nowrap }
.figures td, .figures th { padding: .25em .55em } summary { cursor: pointer; margin: .4em 0 }
.context { line-height: 1.7; overflow-wrap: anywhere } .special { color: #9ca3af }
</style>"""
_DASHES = ("solid", "dash", "dot", "dashdot")
_FULL_RED = 4.0
"""Nats at which a token's colour is full."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Sets of dictionaries of one model, measured on one text."""

    text: str
    n_contexts: int
    n_spliced: int
    """Contexts on which dictionaries were spliced in: the first of those measured."""
    profiles: dict[str, dict[Site, Profile]]
    """By the name of the set."""
    splices: dict[str, dict[Site, SpliceReport]]
    alike: dict[Site, tuple[Likeness, ...]]

    @property
    def sites(self) -> list[Site]:
        """The sites at which any set has a dictionary."""
        return sorted({site for own in self.profiles.values() for site in own})

    def at(self, site: Site) -> list[str]:
        """The sets that have a dictionary at `site`."""
        return [name for name, own in self.profiles.items() if site in own]

    @property
    def n_tokens(self) -> int:
        """Content tokens measured."""
        return next(profile.quality.n_tokens for own in self.profiles.values() for profile in own.values())

    def to_json(self) -> dict[str, Any]:
        """All numbers, by set and site, and by site for the comparison of sets."""
        return {
            "text": self.text,
            "contexts": self.n_contexts,
            "tokens": self.n_tokens,
            "contexts_spliced": self.n_spliced,
            "mean_ablation": "the mean over all tokens measured",
            "sets": {
                name: {
                    str(site): profile.to_json() | {"splice": self.splices[name][site].to_json()}
                    for site, profile in own.items()
                }
                for name, own in self.profiles.items()
            },
            "similarity": {str(site): [pair.to_json() for pair in pairs] for site, pairs in self.alike.items()},
        }

    def lines(self) -> list[str]:
        """One line per set and site."""
        return [self._line(name, site) for site in self.sites for name in self.at(site)]

    def _line(self, name: str, site: Site) -> str:
        own, cost = self.profiles[name][site], self.splices[name][site]
        return (
            f"{site} {name}: FVU {own.quality.fvu:.3f}, L0 {own.quality.l0:.1f}, "
            f"dead {own.quality.dead:.1%} of {len(own.density)} on {own.quality.n_tokens} tokens, "
            f"perplexity {_number(cost.original.perplexity)} -> {_number(cost.spliced.perplexity)}, "
            f"KL {cost.spliced.kl:.4f}, loss recovered {cost.recovered:.3f}"
        )


# ---- the page --------------------------------------------------------------------------------------


def evaluation_page(evaluation: Evaluation) -> str:
    """The body of the page: all sets together, then site by site."""
    alone = len(evaluation.profiles) == 1
    parts = [
        _STYLE,
        f'<p class="lead">{_sets(len(evaluation.profiles))} measured on {evaluation.n_tokens:,} tokens in '
        f"{evaluation.n_contexts} contexts of {escape(evaluation.text)}; spliced into the model on the first "
        f"{evaluation.n_spliced} of them, one dictionary at a time.</p>",
    ]
    if alone:
        (name,) = evaluation.profiles
        parts += [f"<h2>{escape(name)}</h2>", _overview(evaluation, name)]
    else:
        parts += ["<h2>All sets</h2>", plot(frontier_figure(evaluation))]
    parts.append(_LEGEND)
    for site in evaluation.sites:
        names = evaluation.at(site)
        parts += [f"<h2>{site}</h2>", _site_table(evaluation, site), plot(site_figure(evaluation, site))]
        if site in evaluation.alike:
            parts.append(_likeness(evaluation.alike[site]))
        parts += [_worst(name, evaluation.splices[name][site].worst) for name in names]
    return "".join(parts)


def _sets(n: int) -> str:
    return "One set of dictionaries" if n == 1 else f"{n} sets of dictionaries"


def _overview(evaluation: Evaluation, name: str) -> str:
    """The sites of the only set, with the numbers that are read first."""
    rows = []
    for site in evaluation.sites:
        own, cost = evaluation.profiles[name][site], evaluation.splices[name][site]
        quality = own.quality
        first = (str(site), f"{quality.fvu:.3f}", f"{quality.l0:.1f}", f"{quality.dead:.1%}")
        rows.append((*first, f"{cost.spliced.kl:.4f}", f"{cost.recovered:.3f}"))
    return table(("site", "FVU", "L0", "dead", "KL", "recovered (zero)"), rows)


def _site_table(evaluation: Evaluation, site: Site) -> str:
    """Every set at one site, and below them what the model does without any, and with the site ablated."""
    names = evaluation.at(site)
    rows = []
    for name in names:
        own, cost = evaluation.profiles[name][site], evaluation.splices[name][site]
        rows.append(
            (
                name,
                f"{len(own.density):,}",
                f"{own.quality.fvu:.3f}",
                f"{own.quality.l0:.1f}",
                f"{own.quality.dead:.1%}",
                f"{len(own.at_start)}",
                f"{own.cosine:.3f}",
                f"{own.norm_ratio:.3f}",
                *_loss(cost.spliced),
                f"{cost.recovered:.3f}",
                f"{cost.recovered_from_mean:.3f}",
            )
        )
    cost = evaluation.splices[names[0]][site]
    references = (
        ("the model itself", cost.original),
        ("site at zero", cost.zeroed),
        ("site at its mean", cost.averaged),
    )
    rows += [(name, *[""] * 7, *_loss(loss), "", "") for name, loss in references]
    head = (
        *("set", "latents", "FVU", "L0", "dead", "at start", "cosine", "norm ratio", "cross-entropy", "perplexity"),
        *("KL", "recovered (zero)", "(mean)"),
    )
    return f'<div class="figures">{table(head, rows)}</div>'


def _loss(loss: Loss) -> tuple[str, str, str]:
    return f"{loss.cross_entropy:.3f}", _number(loss.perplexity), f"{loss.kl:.4f}"


_LEGEND = (
    '<p class="note">FVU: share of the activations\' variance that the dictionary misses. L0: latents active per '
    "token. Dead: latents active on none of the tokens measured. At start: latents active mostly on a context's "
    "first token. Cosine and norm ratio: between reconstruction and activation, mean over tokens; a ratio below 1 is "
    "shrinkage. Cross-entropy and KL(model ‖ edited) in nats per token, with the reconstruction in place at all "
    "content tokens; for comparison with the site set to zero there, and to its mean over the tokens measured. "
    "Recovered: the spliced cross-entropy on the scale on which the ablation is 0 and the untouched model 1.</p>"
)


def _likeness(pairs: Sequence[Likeness]) -> str:
    rows = []
    for pair in pairs:
        a, b = pair.found, pair.chance
        rows.append(
            (
                f"{pair.a} / {pair.b}",
                f"{a.a_in_b:.3f} ({b.a_in_b:.3f})",
                f"{a.b_in_a:.3f} ({b.b_in_a:.3f})",
                f"{a.matched:.3f} ({b.matched:.3f})",
                f"{a.share(0.7):.1%} ({b.share(0.7):.1%})",
                f"{a.share(0.9):.1%} ({b.share(0.9):.1%})",
                f"{len(a.pairs)} by {'Hungarian' if a.exact else 'mutual nearest'}",
            )
        )
    head = ("sets a / b", "a in b", "b in a", "matched", "matched ≥ 0.7", "matched ≥ 0.9", "pairs")
    return (
        "<h3>Are the sets alike?</h3>"
        + table(head, rows)
        + '<p class="note">Cosines of directions; in brackets for random dictionaries of the same sizes. a in b: mean '
        "over the latents of a of the largest cosine to any of b. Matched: every latent used once; shares are of the "
        "smaller dictionary.</p>"
    )


def _worst(name: str, worst: Sequence[Hurt]) -> str:
    if not worst:
        return ""
    items = "".join(
        f'<p class="context"><b>context {one.context}</b>: perplexity {_number(one.perplexity)} → '
        f"{_number(one.perplexity_spliced)}, worst at token {one.position}<br>{_coloured(one)}</p>"
        for one in worst
    )
    return (
        f"<details><summary>Contexts that {escape(name)} hurts most: perplexity {_number(worst[0].perplexity)} → "
        f"{_number(worst[0].perplexity_spliced)} …</summary>{items}"
        '<p class="note">Red: the splice makes the token less expected, fully red from '
        f"{_FULL_RED:g} nats; blue: more expected.</p></details>"
    )


def _coloured(one: Hurt) -> str:
    """A context's tokens, each on the colour of its rise; set apart where they do not bring their own spaces."""
    spans = []
    for token, rise in zip(one.tokens, one.rise, strict=True):
        text = escape(token.replace("\n", "↵"))
        if rise is None:
            spans.append(f'<span class="special">{text}</span>')
            continue
        strength = 0.8 * min(1.0, abs(rise) / _FULL_RED)
        colour = f"rgba({'220,38,38' if rise > 0 else '37,99,235'},{strength:.2f})"
        spans.append(f'<span style="background:{colour}" title="{rise:+.2f} nats">{text}</span>')
    return ("" if any(token.startswith(" ") for token in one.tokens) else " ").join(spans)


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


# ---- figures ---------------------------------------------------------------------------------------


def frontier_figure(evaluation: Evaluation) -> "Figure":
    """FVU and KL against L0 over the sets: a colour per site, and where sizes differ a curve for each."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    for site, rank, names in _curves(evaluation):
        own, cost = ([of[name][site] for name in names] for of in (evaluation.profiles, evaluation.splices))
        colour = _COLOURS[evaluation.sites.index(site) % len(_COLOURS)]
        for column, values in ((1, [p.quality.fvu for p in own]), (2, [c.spliced.kl for c in cost])):
            figure.add_trace(
                Scatter(
                    x=[profile.quality.l0 for profile in own],
                    y=values,
                    name=str(site),
                    legendgroup=str(site),
                    showlegend=column == 1 and rank == 0,
                    mode="lines+markers",
                    line={"color": colour, "dash": _DASHES[rank % len(_DASHES)]},
                    text=[f"{escape(name)}, {len(p.density):,} latents" for name, p in zip(names, own, strict=True)],
                    hovertemplate="%{text}<br>L0 %{x:.1f}: %{y:.4f}",
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="L0: active latents per token", type="log", row=1)
    figure.update_yaxes(title_text="FVU", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="KL(model ‖ spliced), nats per token", rangemode="tozero", row=1, col=2)
    return _styled(figure, height=440)


def _curves(evaluation: Evaluation) -> Iterator[tuple[Site, int, list[str]]]:
    """(Site, rank of the number of latents, sets by rising L0): what one line of the plot joins."""
    for site in evaluation.sites:
        of = {name: evaluation.profiles[name][site] for name in evaluation.at(site)}
        for rank, width in enumerate(sorted({len(profile.density) for profile in of.values()})):
            names = [name for name, profile in of.items() if len(profile.density) == width]
            yield site, rank, sorted(names, key=lambda name, of=of: of[name].quality.l0)


def site_figure(evaluation: Evaluation, site: Site) -> "Figure":
    """Densities, and FVU by position and by token frequency: one curve per set."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=3, horizontal_spacing=0.08)
    for number, name in enumerate(evaluation.at(site)):
        profile = evaluation.profiles[name][site]
        edges, counts = profile.histogram()
        look = {"name": escape(name), "legendgroup": name, "line": {"color": _COLOURS[number % len(_COLOURS)]}}
        steps = Scatter(x=edges, y=[*counts, 0], mode="lines", hovertemplate="10^%{x}: %{y} latents", **look)
        figure.add_trace(steps.update(line_shape="hv"), row=1, col=1)
        for column, parts in ((2, profile.by_position), (3, profile.by_frequency)):
            figure.add_trace(
                Scatter(
                    x=[part.name for part in parts],
                    y=[part.fvu for part in parts],
                    customdata=[[part.n_tokens, part.l0] for part in parts],
                    hovertemplate="%{x}: FVU %{y:.3f}, L0 %{customdata[1]:.1f} on %{customdata[0]:,} tokens",
                    mode="lines+markers",
                    showlegend=False,
                    **look,
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="log10 density", row=1, col=1)
    figure.update_xaxes(title_text="position in the context", type="category", row=1, col=2)
    figure.update_xaxes(title_text="rank of the token by frequency", type="category", row=1, col=3)
    figure.update_yaxes(title_text="latents", row=1, col=1)
    figure.update_yaxes(title_text="FVU", rangemode="tozero", row=1, col=2)
    figure.update_yaxes(rangemode="tozero", matches="y2", row=1, col=3)
    return _styled(figure, height=340)


def _styled(figure: "Figure", *, height: int) -> "Figure":
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 30, "b": 60},
        font={"family": "Helvetica, Arial, sans-serif", "size": 13},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
    )
    return figure
