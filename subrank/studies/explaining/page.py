"""The finding of a study of explanations in words, the source's picture of it, and its page."""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from editing.plotting import AMBER, BLUE, GREEN, GREY, PURPLE, RED, error_bars, styled
from subrank.pages.names import LONGEST
from subrank.pages.page import Table, Token, estimate_cell, figure, render
from subrank.studies.explaining.rows import NUMBERS, Explained, Shown, Tally, main_methods, mean_of, methods_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_COLOURS = (BLUE, AMBER, GREEN, PURPLE, RED, GREY)
WORTH = 0.2
"""Correlation below which an explanation is no name: it says nothing of what the feature does on other text."""
LISTED = 60
"""Explanations in the list, at most: evenly from the best to the worst."""


def sentences(by: str, rows: Sequence[Explained], tally: Tally, seed: int) -> list[str]:
    """A line for each method, and one on what is missing."""
    asked, lost = "", sum(row.scores.unanswered for row in rows) / len(rows)
    if tally.asked or tally.known:
        n_missing = sum(not row.text for row in rows)
        asked = f"{by} was asked {tally.asked:,} questions; {tally.known:,} more were answered before. "
        asked += f"Without an answer: {n_missing} explanations, {lost:.1%} of the predictions. "
        asked += f"For example: {tally.problems[0]}. " if tally.problems else ""
    left_out = f"Left out: {tally.silent} directions that are silent on the held-out fragments."
    constant = sum(row.scores.constant for row in rows)
    means = {method: mean_of(rows, "top_and_random", seed, method=method).value for method in main_methods(rows)}
    best = max(means, key=lambda method: means[method])
    return [
        *(_line(rows, method, seed) for method in [*means][:8]),
        f"Best on top and random fragments: {best}. Detection and fuzzing are 0.50 by chance. {asked}{left_out} "
        f"Correlations that are 0 because nothing varies: {constant} of {len(rows)}.",
    ]


def _line(rows: Sequence[Explained], method: str, seed: int) -> str:
    both, everywhere, detection, fuzzing = (
        format(mean_of(rows, number, seed, method=method), ".2f").replace("nan", "–")
        for number in ("top_and_random", "all", "detection", "fuzzing")
    )
    n = sum(row.method == method for row in rows)
    return (
        f"{method} ({n} directions): simulated and true activation correlate {both} on top and random fragments, "
        f"{everywhere} with fragments from anywhere; detection {detection}, fuzzing {fuzzing}."
    )


def layers_figure(rows: Sequence[Explained], seed: int) -> "Figure":
    """Mean correlation of simulated and true activation by site, with intervals over features."""
    from plotly.graph_objects import Figure, Scatter

    drawn, sites = Figure(), sorted({row.feature.site for row in rows})
    for place, method in enumerate(main_methods(rows)):
        values = [mean_of(rows, "top_and_random", seed, method=method, site=site) for site in sites]
        across = [number + 0.05 * place for number in range(len(sites))]  # so that intervals stand side by side
        line = {"color": _COLOURS[place % len(_COLOURS)], "dash": "dot" if "," in method else "solid"}
        look = {"name": method, "mode": "lines+markers", "line": line, "error_y": error_bars(values, thickness=1.2)}
        drawn.add_trace(Scatter(x=across, y=[value.value for value in values], **look))
    ticks = {"tickvals": [*range(len(sites))], "ticktext": [str(site) for site in sites]}
    drawn.update_xaxes(range=[-0.4, len(sites) - 0.4], **ticks)
    drawn.update_yaxes(title_text="correlation, top and random fragments")
    return styled(drawn, height=440)


def as_names(rows: Sequence[Explained]) -> dict[str, str]:
    """The explanations of the first method that are worth something as `names.json` takes them, a line each."""
    names = {}
    for row in rows:
        line = "".join(" " if unicodedata.category(sign) in ("Cc", "Zl", "Zp", "Cs") else sign for sign in row.text)
        line = " ".join(line.split())
        if row.method == rows[0].method and line and row.scores.top_and_random >= WORTH:
            names[str(row.feature)] = line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
    return names


def explain_section(
    rows: Sequence[Explained], shown: Sequence[Shown], lines: Sequence[str], layers: "Figure", seed: int
) -> Markup:
    """The page: interpretability by layer, what is seen, fragments as simulated, and the explanations."""
    return render(
        "explain.html",
        method=rows[0].method,
        lines=lines,
        layers=figure(layers),
        shown=[_fragment(each) for each in shown],
        methods=_method_table(rows, seed),
        explanations=_list(rows),
    )


def _method_table(rows: Sequence[Explained], seed: int) -> Table:
    body = []
    for method in methods_of(rows):
        chosen = [row for row in rows if row.method == method]
        lost = sum(row.scores.unanswered for row in chosen) / len(chosen)
        means = [mean_of(rows, number, seed, method=method) for number in NUMBERS]
        cells = (estimate_cell(mean if mean.value == mean.value else None, ".2f") for mean in means)
        body.append((method, str(len(chosen)), *cells, f"{lost:.0%}"))
    return Table(("directions", "n", *NUMBERS.values(), "unanswered"), body, wide=True)


def _list(rows: Sequence[Explained]) -> Table:
    ranked = sorted((row for row in rows if row.method == rows[0].method), key=lambda row: -row.scores.top_and_random)
    step = max(1, -(-len(ranked) // LISTED))
    numbers = ("top_and_random", "all", "detection", "fuzzing")
    body = [
        (
            str(row.feature),
            *(format(getattr(row.scores, number), ".2f").replace("nan", "–") for number in numbers),
            row.text or "no answer",
        )
        for row in ranked[::step]
    ]
    return Table(("feature", *(NUMBERS[number] for number in numbers), "explanation"), body, prose=True)


def _fragment(shown: Shown) -> dict:
    """True and simulated activations as two texts, each shaded up to its own largest."""
    texts = [
        [
            Token(token, None if value != value else max(0.0, value / (most or 1.0)), f"{value:.3g}")
            for token, value in zip(shown.tokens, values, strict=True)
        ]
        for values, most in zip((shown.true, shown.simulated), shown.most, strict=True)
    ]
    return {
        "feature": str(shown.feature),
        "text": shown.text or "no answer",
        "group": shown.group,
        "correlation": f"{shown.correlation:.2f}",
        "true": texts[0],
        "simulated": texts[1],
    }
