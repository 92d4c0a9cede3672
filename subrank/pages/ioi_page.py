"""The page of `subrank ioi`: patching curves as figures and tables."""

from collections.abc import Sequence

from markupsafe import Markup

from editing.ioi.curve import Curve
from editing.ioi.figure import Labels, ioi_figure, selection_figure
from editing.ioi.result import IOIResult
from subrank.pages.page import Cell, Table, estimate_cell, figure, render

_PAIRS = {
    "io": "only the indirect object differs",
    "swap": "the two names swap roles",
    "abc": "the second mention of the subject becomes a third name",
}
_COUNTS = (0, 1, 4, 8, 16, 32, 64, 128, 256)


def ioi_section(results: Sequence[IOIResult], labels: Labels | None = None) -> Markup:
    """The patching curves with what to read from them; `labels` say what features respond to."""
    return render("ioi.html", parts=[_part(result, labels) for result in results])


def difference(result: IOIResult) -> str:
    """What the two prompts of a pair differ in, in words."""
    return _PAIRS.get(result.corruption, result.corruption)


def _part(result: IOIResult, labels: Labels | None) -> dict:
    curves, positions = result.main(), result.positions
    return {
        "site": result.site,
        "pairs": difference(result),
        "model_score": result.own.sentence(),
        "positions": "all positions" if positions is None else f"positions {', '.join(map(str, positions))}",
        "n_selection": result.n_selection,
        "selection": result.curves[0].selection or "fixed beforehand",
        "n_test": result.n_test,
        "shared": " and ".join(result.shared),
        "kl": curve_table(curves, "kl"),
        "probability": curve_table(curves, "probability"),
        "sentences": result.sentences(),
        "reasons": result.reasons(),
        "of_pairs": curve_table(result.of_pairs(), "kl") if result.of_pairs() else None,
        "left": f"{abs(next(iter(result.floors.values()))['all_latents_and_error']):.6f}",
        "plot": figure(ioi_figure(result, labels)),
        "selections": _selection_table(result),
        "selection_plot": figure(selection_figure(result)),
    }


def curve_table(curves: Sequence[Curve], field: str, counts: Sequence[int] = _COUNTS) -> Table:
    """One number of every curve after so many features."""
    rows = [(curve.name, *(_at(curve, n, field) for n in counts)) for curve in curves]
    return Table(("patched features", *map(str, counts)), rows)


def _selection_table(result: IOIResult) -> Table | None:
    """The ways to choose features side by side, with what they cost; None where there is one only."""
    curves = [curve for curve in result.curves if curve.name in result.floors]
    if len({curve.selection for curve in curves}) < 2:
        return None
    rows = [
        (
            f"{curve.name}, {curve.selection}",
            f"{curve.forwards:,}",
            *(_at(curve, n, "kl", at_most=True) for n in _COUNTS[1:]),
        )
        for curve in curves
    ]
    return Table(("chosen by", "prompts run", *(f"KL at {n}" for n in _COUNTS[1:])), rows)


def _at(curve: Curve, n: int, field: str, *, at_most: bool = False) -> Cell | str:
    """A number after `n` features, with its interval; `at_most`, of the largest set up to `n`."""
    point = next((p for p in reversed(curve.points) if p.n_features == n or (at_most and p.n_features < n)), None)
    if point is None:
        return ""
    cell = estimate_cell(getattr(point, field), ".3g", ".2g")
    return cell if point.n_features == n else Cell(f"{cell.text} ({point.n_features} features)", cell.small)
