"""The page of `subrank remove`: capability left and damage done, per method."""

from collections.abc import Sequence

from markupsafe import Markup

from editing.removal.evaluation import GONE, Method, Removal
from editing.removal.figure import removal_figure
from editing.removal.result import RemovalResult
from sae_core.sites import Site
from subrank.pages.page import MISSING, Cell, Table, estimate_cell, figure, render, yes_or_no


def removal_section(result: RemovalResult) -> Markup:
    """Capability left and damage done, at the chosen site, per layer and over all layers."""
    features = next(m for m in result.methods if m.method == Method.FEATURES)
    methods = (*([result.unedited] if result.unedited else []), *result.methods)
    best = next((i for i, m in enumerate(methods) if m.method == result.best), None)
    return render(
        "removal.html",
        model_score=f"{result.own.sentence()}; AUROC {result.own_auroc:.3f}",
        example=result.example,
        answers=result.answers,
        budget=f"{result.budget:g}",
        site=result.site,
        features=", ".join(features.features),
        strength=f"{features.strength:g}",
        methods=_methods_table(methods, best),
        outcome=result.sentence(),
        comparisons=_comparison_table(result),
        verdict=result.verdict(),
        notes=result.notes,
        plot=figure(removal_figure(result)),
        gone=_gone_table(result),
        layers=_layers_table(result) if result.elsewhere else None,
        everywhere=_methods_table(result.everywhere) if result.everywhere else None,
        resampled=result.resampled,
        transfer=" / ".join(result.unedited.transfer) if result.unedited else "",
        near=GONE,
    )


def _methods_table(methods: Sequence[Removal], best: int | None = None) -> Table:
    head = (
        *("method", "strength", "AUROC", "within sentences", "accuracy", "P(right) − P(wrong)", "P(both)", "transfer"),
        *("probe: site, last layer", "damage (nats/token)", "cross-entropy", "edit size", "gone"),
    )
    return Table(head, [_method_row(method) for method in methods], best, wide=True)


def _method_row(removal: Removal) -> tuple[str | Cell, ...]:
    auroc = estimate_cell(removal.auroc, ".2f")
    if removal.draws:
        auroc = Cell(auroc.text, f"{auroc.small}\n{', '.join(f'{area:.2f}' for area in removal.draws)}".strip())
    probes = (MISSING if area is None else f"{area.value:.2f}" for area in (removal.probe, removal.probe_last))
    return (
        removal.method,
        f"{removal.strength:.2f}",
        auroc,
        estimate_cell(removal.within, ".2f"),
        estimate_cell(removal.accuracy, ".2f"),
        estimate_cell(removal.gap, ".2f"),
        f"{removal.answer_mass:.2f}",
        " / ".join(f"{area.value:.2f}" for area in removal.transfer.values()) or MISSING,
        " / ".join(probes),
        estimate_cell(removal.damage, ".4f"),
        f"{removal.rise.value:+.4f}",
        f"{removal.edit_size:.2f}",
        yes_or_no(removal.gone),
    )


def _comparison_table(result: RemovalResult) -> Table | None:
    """Features beside LEACE, site by site."""
    rows = [
        (
            comparison.site,
            yes_or_no(comparison.features_gone),
            yes_or_no(comparison.leace_gone),
            estimate_cell(comparison.saved, "+.4f"),
        )
        for comparison in result.comparisons
    ]
    head = ("site", "features gone", "LEACE gone", "damage that the features save (nats/token)")
    return Table(head, rows) if rows else None


def _gone_table(result: RemovalResult) -> Table | None:
    """Each method's damage at the strength at which the capability goes."""
    rows = []
    for frontier in result.frontiers:
        damage = frontier.damage_when_gone()
        rows.append((frontier.method, frontier.site, "never" if damage is None else f"{damage:.5f}"))
    return Table(("method", "site", "nats/token"), rows) if rows else None


def _layers_table(result: RemovalResult) -> Table:
    """AUROC and damage, a row to a site and a column to a method."""
    removals = (*result.methods, *result.elsewhere)
    names = list(dict.fromkeys(removal.method for removal in result.elsewhere))
    cells = {
        (removal.site, removal.method): f"{removal.auroc.value:.2f} / {removal.damage.value:.4f}"
        for removal in removals
    }
    sites = sorted({Site.parse(removal.site) for removal in removals})
    rows = [(str(site), *(cells.get((str(site), name), MISSING) for name in names)) for site in sites]
    return Table(("site", *names), rows)
