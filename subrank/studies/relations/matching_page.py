"""The finding of a study of matching in words, its picture, and its page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from editing.plotting import styled
from subrank.pages.page import Cell, Table, estimate_cell, figure, render
from subrank.studies.relations.correlations import FEWEST, MATCHED, Match, Partners
from subrank.studies.relations.shares import percent

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def nearest_sites(names: tuple[str, str], matches: Sequence[Match]) -> list[Match]:
    """For each site of the first set the one of the other where most of its latents are matched.

    Of a set with itself, the most among other sites.
    """
    is_same = names[0] == names[1]
    rows: dict[object, list[Match]] = {}
    for each in matches:
        if not (is_same and each.site == each.other):
            rows.setdefault(each.site, []).append(each)
    return [max(of_site, key=how_matched) for of_site in rows.values()]


def how_matched(match: Match) -> tuple[float, float]:
    """For the largest of several; where nothing could be compared, less than anything."""
    value, best = match.matched.value, match.best.value
    return (value, best) if value == value else (-1.0, -1.0)


def sentences(names: tuple[str, str], matches: Sequence[Match]) -> list[str]:
    """A sentence for each site of the first set."""
    return [
        f"{each.site} of {names[0]}: {percent(each.matched)} of {each.n} latents have a partner in {names[1]} at "
        f"{each.other} (by chance {percent(each.matched_by_chance)}); of its {each.n_other}, "
        f"{percent(each.matched_other)} have one here (by chance {percent(each.matched_other_by_chance)})"
        for each in nearest_sites(names, matches)
    ]


def heat_map(names: tuple[str, str], matches: Sequence[Match]) -> "Figure":
    """The share of the first set's latents that are matched, for every pair of sites."""
    from plotly.graph_objects import Figure, Heatmap

    sites = list(dict.fromkeys(str(each.site) for each in matches))
    others = list(dict.fromkeys(str(each.other) for each in matches))
    at = {(str(each.site), str(each.other)): each for each in matches}
    grid = [[at[a, b] for b in others] for a in sites]
    drawn = Heatmap(
        z=[[each.matched.value for each in row] for row in grid],
        x=others,
        y=sites,
        zmin=0,
        zmax=1,
        colorscale="Blues",
        colorbar={"title": "matched", "tickformat": ".0%"},
        texttemplate="%{z:.0%}",
        customdata=[[each.matched_by_chance.value for each in row] for row in grid],
        hovertemplate="%{y} in %{x}: %{z:.1%}, by chance %{customdata:.1%}<extra></extra>",
    )
    figure = styled(Figure(drawn), height=max(260, 120 + 42 * len(sites)))
    figure.update_xaxes(title_text=f"site of {names[1]}", type="category")
    figure.update_yaxes(title_text=f"site of {names[0]}", type="category", automargin=True)
    return figure


def matching_section(
    names: tuple[str, str], matches: Sequence[Match], best: Sequence[Partners], read: tuple[int, int]
) -> Markup:
    """The page: the map of sites, the best partners in words, and all numbers beside chance."""
    return render(
        "matching.html",
        names=names,
        plot=figure(heat_map(names, matches)),
        lines=sentences(names, matches),
        partners=Table(
            (names[0], "its largest activations", f"in {names[1]}", "its largest activations", "correlation"),
            [(p.feature, p.words, p.partner, p.partner_words, f"{p.correlation:.2f}") for p in best],
        ),
        numbers=_number_table(matches),
        fewest=FEWEST,
        threshold=MATCHED,
        n_spans=read[0],
        skipped=read[1],
    )


def _number_table(matches: Sequence[Match]) -> Table:
    head = (
        "site, other",
        "latents",
        "matched",
        "by chance",
        "matched of the other",
        "by chance",
        "best r",
        "by chance",
    )
    rows = [
        (
            Cell(str(each.site), str(each.other)),
            f"{each.n}, {each.n_other}",
            *(
                estimate_cell(value, ".1%") if value.value == value.value else "–"
                for value in (
                    each.matched,
                    each.matched_by_chance,
                    each.matched_other,
                    each.matched_other_by_chance,
                )
            ),
            *(estimate_cell(value, ".2f") for value in (each.best, each.best_by_chance)),
        )
        for each in matches
    ]
    return Table(head, rows, wide=True)
