"""The finding of a study of dark matter in words, its pictures, and its page."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from editing.plotting import AMBER, BLUE, GREEN, GREY, PURPLE, RED, error_bars, styled
from sae_core.codec import finite
from sae_core.estimate import Estimate
from subrank.pages.page import MISSING, Cell, Table, estimate_cell, figure, render
from subrank.studies.errors import fits as names
from subrank.studies.errors.claims import Claim
from subrank.studies.errors.fits import ERROR, LINEAR, NONLINEAR, PLAIN, SQUARED, X
from subrank.studies.errors.parts import LIKE, PURSUED, RISE, SHUFFLED
from subrank.studies.errors.report import Prediction, SiteErrors

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PREDICTORS = {
    X: BLUE,
    names.RESCALED: AMBER,
    names.EARLIER: GREEN,
    names.TOKEN: PURPLE,
    names.NORM: "#0891b2",
    names.OTHER: GREY,
    names.NOISE: RED,
}
"""What is drawn beside x, in these colours."""
MEASURED = {
    "FVU": ("fvu", PLAIN),
    "nonlinear": ("fvu", X),
    "with earlier x̂": ("fvu", names.EARLIER),
    "rise of CE": ("loss", RISE),
    "L back": ("loss", LINEAR),
    "N back": ("loss", NONLINEAR),
    "other L": ("loss", SHUFFLED),
    "FVU on x": ("dictionaries", X),
    "on e": ("dictionaries", ERROR),
    "on L": ("dictionaries", LINEAR),
    "on N": ("dictionaries", NONLINEAR),
    "on Gaussian like L": ("dictionaries", LIKE[LINEAR]),
    "like N": ("dictionaries", LIKE[NONLINEAR]),
    "before pursuit": ("pursuit", PLAIN),
    "after": ("pursuit", PURSUED),
}
"""Columns of the table of both parts, by kind and name."""
VERDICTS = {True: "agrees", False: "does not agree", None: "not measured"}


def sentences(errors: Sequence[SiteErrors], claims: Sequence[Claim]) -> list[str]:
    """What the dictionaries are, how predictable their errors, and which of the paper's findings are found again."""
    last = largest(errors)
    fvus, nonlinear = [each.fvu.value for each in last], [each.nonlinear.value for each in last]
    lines = [
        f"{last[0].set} at {len(last)} {'sites' if len(last) > 1 else 'site'}: L0 {_range([e.l0 for e in last])}, FVU "
        f"{_range(fvus)}, of which the nonlinear error is {_range(nonlinear)}; on {last[0].n_tokens} tokens, "
        f"{last[0].n_left_out} of massive norm left out."
    ]
    lines += [f"{claim.text}: {claim.value:.2f} ({claim.beside})." for claim in claims[:2] if claim.agrees is not None]
    for verdict, words in VERDICTS.items():
        texts = [claim.text for claim in claims if claim.agrees is verdict]
        lines += [f"{words.capitalize()}: {'; '.join(texts)}."] if texts else []
    return lines


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:.3g}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def largest(errors: Sequence[SiteErrors]) -> list[SiteErrors]:
    """Those of the largest set, site by site."""
    return [each for each in errors if each.set == errors[-1].set]


def figures_of(errors: Sequence[SiteErrors]) -> "dict[str, Figure]":
    """The two parts of every error, and what predicts them."""
    return {"parts": parts_figure(errors), "predicted": predicted_figure(largest(errors))}


def parts_figure(errors: Sequence[SiteErrors]) -> "Figure":
    """FVU of every dictionary as linear and nonlinear error, and what pursuit and an earlier site leave of it."""
    from plotly.graph_objects import Figure

    errors = sorted(errors, key=lambda each: each.site)
    several = len({each.set for each in errors}) > 1
    x = [f"{each.site}<br>{each.set}" if several else str(each.site) for each in errors]
    linear = [each.fvu.value - each.nonlinear.value for each in errors]
    drawn, bars = Figure(), error_bars([each.fvu for each in errors])
    drawn.add_bar(x=x, y=[each.nonlinear.value for each in errors], name=NONLINEAR, marker_color=BLUE)
    drawn.add_bar(x=x, y=linear, name=LINEAR, marker_color=AMBER, error_y=bars)
    marks = {
        "with gradient pursuit": ("pursuit", PURSUED, "diamond"),
        "with an earlier site": ("fvu", names.EARLIER, "x"),
    }
    for name, (kind, key, symbol) in marks.items():
        y = [finite(each.number(kind, key).value) for each in errors]
        drawn.add_scatter(x=x, y=y, name=name, mode="markers", marker={"symbol": symbol, "color": "#111", "size": 9})
    drawn.update_layout(barmode="stack")
    drawn.update_yaxes(title_text="FVU", rangemode="tozero")
    return styled(drawn, height=380)


def predicted_figure(errors: Sequence[SiteErrors]) -> "Figure":
    """R^2 of the error vector, and of its squared norm, from x and from what might predict them as well."""
    from plotly.subplots import make_subplots

    drawn = make_subplots(1, 2, subplot_titles=("the error vector", "its squared norm"), shared_yaxes=True)
    for column, target in enumerate((ERROR, SQUARED), 1):
        for name, colour in PREDICTORS.items():
            r2 = [each.r2(target, name) for each in errors]
            look = {"name": name, "legendgroup": name, "showlegend": column == 1, "marker_color": colour}
            y = [None if math.isnan(each.value) else max(-0.05, each.value) for each in r2]
            drawn.add_bar(x=[str(each.site) for each in errors], y=y, error_y=error_bars(r2), row=1, col=column, **look)
    drawn.update_yaxes(range=[-0.06, 1.02])
    drawn.update_yaxes(title_text="R² on other contexts", col=1)
    return styled(drawn, height=400, top=90)


def dark_matter_section(
    errors: Sequence[SiteErrors], claims: Sequence[Claim], figures: "Mapping[str, Figure]"
) -> Markup:
    """The page: the two parts of the error, the paper's findings beside ours, the controls, and all numbers."""
    larger = [each for each in errors if "smaller" in each.measured]
    by_smaller = {f"from {name}": ("smaller", name) for each in larger[:1] for name in each.measured["smaller"]}
    return render(
        "dark_matter.html",
        lines=sentences(errors, claims)[:1],
        plots={name: figure(plot) for name, plot in figures.items()},
        claims=_claim_table(claims),
        errors=_measured_table(largest(errors), MEASURED),
        predictions=_prediction_table(largest(errors)),
        sizes=_measured_table(larger, by_smaller) if larger else None,
        left_out=sum(each.n_left_out for each in largest(errors)[:1]),
    )


def _claim_table(claims: Sequence[Claim]) -> Table:
    rows = [
        (
            Cell(claim.text, claim.rule),
            VERDICTS[claim.agrees],
            _narrow(claim.value) if claim.agrees is not None else MISSING,
            claim.beside,
        )
        for claim in claims
    ]
    return Table(("Engels et al.", "here", "ours", "beside it"), rows, prose=True, wide=True)


def _narrow(value: Estimate) -> Cell:
    """With its interval in one line."""
    return Cell(f"{value.value:.2f}", f"[{value.low:.2f},\u00a0{value.high:.2f}]")


def _measured_table(errors: Sequence[SiteErrors], columns: Mapping[str, tuple[str, str]]) -> Table:
    """A row for each dictionary, and in each column the number of that kind and name, where any has it."""
    columns = {
        head: at for head, at in columns.items() if any(at[1] in each.measured.get(at[0], {}) for each in errors)
    }
    rows = [
        (
            Cell(str(each.site), f"{each.set}: {each.n_latents}, L0 {each.l0:.1f}"),
            *(_cell(each.number(*where)) for where in columns.values()),
        )
        for each in errors
    ]
    return Table(("site, set", *columns), rows, wide=True)


def _cell(value: Estimate) -> Cell:
    return Cell(MISSING) if math.isnan(value.value) else estimate_cell(value)


def _prediction_table(errors: Sequence[SiteErrors]) -> Table:
    keys = list(dict.fromkeys((p.target, p.predictor) for each in errors for p in each.predictions))
    by_site = [{(p.target, p.predictor): p for p in each.predictions} for each in errors]
    rows = [(Cell(key[0], f"from {key[1]}"), *(_prediction_cell(there.get(key)) for there in by_site)) for key in keys]
    return Table(("R²", *(str(each.site) for each in errors)), rows, wide=True)


def _prediction_cell(prediction: Prediction | None) -> Cell:
    if prediction is None:
        return Cell(MISSING)
    beside = {"dimensions": prediction.of_dimensions, "fit": prediction.on_fit}
    small = [f"{name} {value:.3f}" for name, value in beside.items() if not math.isnan(value)]
    return Cell(f"{prediction.r2.value:.3f}", "\n".join(small))
