"""The page of `subrank remove`: what each method needs to remove a capability, and what it leaves and costs."""

from collections.abc import Sequence

from markupsafe import Markup

from editing.removal.figure import removal_figure
from editing.removal.measurement.comparisons import Comparison
from editing.removal.measurement.curve import SHARES, Needed
from editing.removal.measurement.evaluation import Method, Removal
from editing.removal.result import RemovalResult
from sae_core.estimate import Estimate
from sae_core.sites import Site
from subrank.pages.page import MISSING, Cell, Table, estimate_cell, figure, render

RIVALS = (Method.LEACE, Method.MEANS)
"""What the features are compared with, site by site."""


def removal_section(result: RemovalResult) -> Markup:
    """Damage needed and capability left, at the chosen site, per site and over all layers."""
    features = next(row for row in result.methods if row.method is Method.FEATURES)
    weights = zip(features.features, features.strengths or (1.0,) * len(features.features), strict=True)
    return render(
        "removal.html",
        model_score=f"{result.own.sentence()}; AUROC {result.own_auroc:.3f}",
        example=result.example,
        answers=result.answers,
        budget=f"{result.budget:g}",
        site=result.site,
        share=f"{result.share:.0%}",
        features=", ".join(f"{feature} ({weight:.2f})" for feature, weight in weights),
        strength=f"{features.strength:.3g}",
        outcome=result.sentence(),
        needed=needed_table(result, result.site),
        verdict=result.verdict(),
        comparisons=_comparison_table(result),
        methods=_methods_table(result, (result.unedited, *result.methods)),
        notes=result.notes,
        plot=figure(removal_figure(result)),
        layers=_layers_table(result) if result.elsewhere else None,
        needed_everywhere=needed_table(result, result.everywhere[0].site) if result.everywhere else None,
        everywhere=_methods_table(result, result.everywhere) if result.everywhere else None,
        resampled=result.resampled,
        transfer=" / ".join(result.unedited.transfer),
    )


# ---- damage needed ---------------------------------------------------------------------------------


def needed_table(result: RemovalResult, site: str) -> Table | None:
    """The damage at which each method removes each share; the row that needs least for the wanted share is marked."""
    curves = [*result.curves_at(site).values()]
    damages = [curve.at(result.share).damage for curve in curves]
    reached = {i: damage for i, damage in enumerate(damages) if damage is not None}
    rows = [(curve.method, curve.place or MISSING, *map(_needed_cell, curve.needed)) for curve in curves]
    head = ("method", "fitted on", *(f"{share:.0%} removed" for share in SHARES))
    return Table(head, rows, min(reached, key=lambda i: reached[i], default=None)) if rows else None


def _needed_cell(needed: Needed) -> Cell:
    """The damage with its interval, or never; and in how many resamples of prompts and text the share is reached."""
    interval = "" if needed.low is None else needed.interval()
    often = "" if needed.reached in (0, 1) else f"\nreached in {needed.reached:.0%}"
    return Cell(str(needed), f"{interval}{often}".strip())


def _comparison_table(result: RemovalResult) -> Table | None:
    """Features beside LEACE and the mean difference at the wanted share, a row to a site."""
    rows: dict[str, dict[Method, Comparison]] = {}
    for each in result.comparisons:
        if each.share == result.share and each.rival in RIVALS:
            rows.setdefault(each.site, {})[each.rival] = each
    head = ["site", "features"]
    for rival in RIVALS:
        head += [str(rival), "features: times less"]
    cells = []
    for site, rivals in rows.items():
        row: list[str | Cell] = [site, _needed_cell(next(iter(rivals.values())).features)]
        for rival in RIVALS:
            row += _rival_cells(rivals[rival]) if rival in rivals else (MISSING, MISSING)
        cells.append(row)
    return Table(head, cells) if rows else None


def _rival_cells(comparison: Comparison) -> tuple[Cell, Cell]:
    """What the rival needs, fitted where; and how many times less the features need, clearly or not."""
    needed, times = _needed_cell(comparison.other), comparison.times
    said = "clearly less" if comparison.clearly else "less, not clearly" if comparison.better else "not less"
    ratio = MISSING if times is None else f"{float(f'{times:.2g}'):,.0f}" if times >= 10 else f"{times:.2g}"
    return (
        Cell(needed.text, f"{needed.small}\n{comparison.place}".strip()),
        Cell(ratio, f"{said}\nin {comparison.less:.0%}"),
    )


# ---- every figure ----------------------------------------------------------------------------------


def _methods_table(result: RemovalResult, methods: Sequence[Removal]) -> Table:
    head = (
        *("method", "strength", "capability left", "AUROC", "within sentences", "accuracy", "P(right) − P(wrong)"),
        *("P(both)", "transfer", "probe: site, last layer", "damage (nats/token)", "cross-entropy"),
        *("edit size", "tokens changed"),
    )
    return Table(head, [_method_row(row, _left(result, row)) for row in methods], wide=True)


def _method_row(removal: Removal, left: Estimate | float) -> tuple[str | Cell, ...]:
    auroc = estimate_cell(removal.auroc, ".2f")
    if removal.draws:
        auroc = Cell(auroc.text, f"{auroc.small}\n{', '.join(f'{area:.2f}' for area in removal.draws)}".strip())
    probes = (MISSING if area is None else f"{area.value:.2f}" for area in (removal.probe, removal.probe_last))
    return (
        removal.method,
        f"{removal.strength:.2f}",
        estimate_cell(left, ".2f"),
        auroc,
        estimate_cell(removal.within, ".2f"),
        estimate_cell(removal.accuracy, ".2f"),
        estimate_cell(removal.gap, ".2f"),
        f"{removal.answer_mass:.2f}",
        " / ".join(f"{area.value:.2f}" for area in removal.transfer.values()) or MISSING,
        " / ".join(probes),
        estimate_cell(removal.damage, ".2g"),
        f"{removal.rise.value:+.4f}",
        f"{removal.edit_size:.2f}",
        f"{removal.share_changed:.1%}",
    )


def _left(result: RemovalResult, removal: Removal) -> Estimate | float:
    """Capability left, with its interval where the method has a curve."""
    curve = result.curves_at(removal.site).get(removal.method)
    if curve is None:
        return removal.left
    return min(curve.points, key=lambda point: abs(point.strength - removal.strength)).left


def _layers_table(result: RemovalResult) -> Table:
    """Capability left and damage, a row to a site and a column to a method."""
    removals = (*result.methods, *result.elsewhere)
    names = list(dict.fromkeys(removal.method for removal in result.elsewhere))
    cells = {(row.site, row.method): f"{row.left:.2f} / {row.damage.value:.2g}" for row in removals}
    sites = sorted({Site.parse(removal.site) for removal in removals})
    rows = [(str(site), *(cells.get((str(site), name), MISSING) for name in names)) for site in sites]
    return Table(("site", *names), rows)
