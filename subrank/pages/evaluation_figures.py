"""Figures of an evaluation: sets against each other, and the dictionaries of one site."""

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from editing.plotting import AMBER, BLUE, GREEN, GREY, PURPLE, RED, styled
from editing.set_evaluation import Evaluation
from sae_core.sites import Site

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_COLOURS = (BLUE, AMBER, GREEN, RED, PURPLE, "#0891b2", GREY, "#db2777")
_DASHES = ("solid", "dash", "dot", "dashdot")


def frontier_figure(evaluation: Evaluation) -> "Figure":
    """FVU and KL against L0 over the sets: a colour per site, and where sizes differ a curve for each."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    for site, rank, names in _curves(evaluation):
        reports = [evaluation.sets[name][site] for name in names]
        colour = _COLOURS[evaluation.sites.index(site) % len(_COLOURS)]
        for column, values in ((1, [r.fvu for r in reports]), (2, [r.splice.spliced.kl for r in reports])):
            figure.add_trace(
                Scatter(
                    x=[report.l0 for report in reports],
                    y=values,
                    name=str(site),
                    legendgroup=str(site),
                    showlegend=column == 1 and rank == 0,
                    mode="lines+markers",
                    line={"color": colour, "dash": _DASHES[rank % len(_DASHES)]},
                    text=[f"{escape(name)}, {r.n_latents:,} latents" for name, r in zip(names, reports, strict=True)],
                    hovertemplate="%{text}<br>L0 %{x:.1f}: %{y:.4f}",
                ),
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="L0: active latents per token", type="log", row=1)
    figure.update_yaxes(title_text="FVU", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="KL(model ‖ spliced), nats per token", rangemode="tozero", row=1, col=2)
    return styled(figure, height=440)


def _curves(evaluation: Evaluation) -> Iterator[tuple[Site, int, list[str]]]:
    """(site, rank of the number of latents, sets by rising L0) of every line in the plot."""
    for site in evaluation.sites:
        reports = evaluation.at(site)
        for rank, width in enumerate(sorted({report.n_latents for report in reports.values()})):
            names = [name for name, report in reports.items() if report.n_latents == width]
            yield site, rank, sorted(names, key=lambda name, reports=reports: reports[name].l0)


def site_figure(evaluation: Evaluation, site: Site) -> "Figure":
    """Densities, and FVU by position and by token frequency: one curve per set."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=3, horizontal_spacing=0.08)
    for number, (name, report) in enumerate(evaluation.at(site).items()):
        look = {"name": escape(name), "legendgroup": name, "line": {"color": _COLOURS[number % len(_COLOURS)]}}
        edges, counts = report.density.log10_edges, report.density.counts
        steps = Scatter(x=edges, y=[*counts, 0], mode="lines", hovertemplate="10^%{x}: %{y} latents", **look)
        figure.add_trace(steps.update(line_shape="hv"), row=1, col=1)
        for column, parts in ((2, report.by_position), (3, report.by_frequency)):
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
    return styled(figure, height=340)
