"""The finding of a study of scaling in words, its tables and its page; what is drawn stands in `laws/figures.py`."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from sae_core.estimate import Estimate
from subrank.pages.page import MISSING, Cell, Table, estimate_cell, figure, render
from subrank.studies.laws.power_law import SHUFFLES, Law
from subrank.studies.laws.scaling_laws import LOSSES, Joint, Laws, Series
from subrank.studies.metrics.measured import METRICS, SetMetrics

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


DEAD = 0.1
"""Share of dead latents from which on a line says what that means."""


def sentences(laws: Laws) -> list[str]:
    """The model's own loss, then what the laws say: of sizes, of compute, of the budget."""
    n, k = (_range([getattr(p, name) for p in laws.points]) for name in ("n_latents", "k"))
    start = f"The model's own cross-entropy is {laws.points[0].original:.3f} nats; dictionaries of {n} latents, k {k}."
    joints = [_joint(joint) for joint in laws.joints if "fvu" in joint.laws]
    sizes = [_sizes(series) for series in laws.series if "fvu" in series.sizes]
    compute = [_compute(series) for series in laws.series if series.compute]
    worst = max(laws.points, key=lambda p: p.dead)
    if worst.dead > DEAD:
        start += f" Of {worst.name} {worst.dead:.0%} of the latents are dead: too few tokens for them flatten the law."
    if not sizes:
        start += " These are too few sizes for a law: train a sweep, such as --expansion 1 2 4 8 16 -k 8 16 32 64."
    return [start, *sizes[:4], *joints[:2], *compute[:4], *sizes[4:], *joints[2:], *compute[4:]]


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def equation(law: Law, loss: str, variable: str) -> str:
    """A law of one variable, the exponent with its interval."""
    floor, scale = law.irreducible, math.exp(law.coefficients["alpha"].value)
    constant = f"{floor.value:.3g} + " if floor else ""
    return f"{loss} = {constant}{scale:.3g} {variable}^-m, m = {law.exponents[0]}, R² {law.r2:.3f}"


def _control(law: Law) -> str:
    return f"with sizes shuffled {law.shuffled_r2.value:.2f}"


def _sizes(series: Series) -> str:
    size = series.sizes["fvu"]
    law = size.law
    text = f"{series.name}: {equation(law, 'FVU', 'n')} ({_control(law)}); "
    if size.predicted is None:
        return text + "not read beyond these sizes, as the interval of m includes 0 or is unknown."
    floor = "" if law.irreducible else ", at least, as no irreducible term is told from none"
    return text + f"at {size.beyond:,.0f} latents {size.predicted}{floor}."


def _joint(joint: Joint) -> str:
    law = joint.laws["fvu"]
    named = ", ".join(f"{name} {value.value:.3g}" for name, value in law.coefficients.items())
    grid = f"{joint.note}; " if "eta" not in law.coefficients else ""
    return f"{joint.site} {joint.kind}: L(n, k) with {named}; {grid}R² {law.r2:.3f} ({_control(law)})."


def _compute(series: Series) -> str:
    assert series.compute is not None
    text = f"{series.name}: {equation(series.compute, 'FVU', 'C')} along {len(series.hull)} corners of the hull"
    if series.optimum is None:
        return text + "."
    best = series.optimum
    return text + f"; for {best.flops:.2g} FLOP the best n is {best.n_latents:,.0f}."


def scaling_section(laws: Laws, figures: "Mapping[str, Figure]") -> Markup:
    """The page: L(n) and its residuals, what is seen, the other laws, the metrics and all numbers."""
    plots = {name: figure(plot) for name, plot in figures.items()}
    metrics, read_at = plots.pop("metrics", ""), plots.pop("other k", "")
    first, *others = plots.items() if plots else [("", "")]
    return render(
        "scaling.html",
        lines=sentences(laws),
        first=first[1],
        others=others,
        notes=[f"{series.name}: {note}" for series in laws.series for note in series.notes]
        + [f"{joint.site} {joint.kind}: L(n, k): {joint.note}" for joint in laws.joints],
        sizes=_size_table(laws.series),
        joints=_joint_table(laws.joints),
        compute=_compute_table(laws.series),
        sets=_set_table(laws),
        metrics=metrics,
        read_at=read_at,
        tables=[
            (f"{p.name} at {p.site}", _metric_table(laws.metrics[p.name][p.site]))
            for p in laws.points
            if p.name in laws.metrics
        ],
        shuffles=SHUFFLES,
    )


def _size_table(series: Sequence[Series]) -> Table:
    head = ("site, kind, k", "loss", "m", "A", "e", "p of e", "R²", "shuffled: R²", "m", "at n", "loss there")
    rows = [
        (
            each.name,
            LOSSES[loss],
            estimate_cell(size.law.exponents[0]),
            f"{math.exp(size.law.coefficients['alpha'].value):.3g}",
            estimate_cell(size.law.irreducible, ".3g"),
            _number(size.law.p_irreducible, ".2g"),
            f"{size.law.r2:.3f}",
            estimate_cell(size.law.shuffled_r2, ".2f"),
            estimate_cell(size.law.shuffled_exponent, ".2f"),
            f"{size.beyond:,.0f}",
            estimate_cell(size.predicted) if size.predicted else Cell(MISSING, "not extrapolated"),
        )
        for each in series
        for loss, size in each.sizes.items()
    ]
    return Table(head, rows, wide=True)


def _joint_table(joints: Sequence[Joint]) -> Table:
    names = ("alpha", "beta_k", "beta_n", "gamma", "zeta", "eta")
    head = ("site, kind", "loss", *names, "p of the floor", "R²", "shuffled")
    rows = [
        (
            f"{joint.site} {joint.kind}",
            LOSSES[loss],
            *(estimate_cell(law.coefficients.get(name), ".3g") for name in names),
            _number(law.p_irreducible, ".2g"),
            f"{law.r2:.3f}",
            estimate_cell(law.shuffled_r2, ".2f"),
        )
        for joint in joints
        for loss, law in joint.laws.items()
    ]
    return Table(head, rows, wide=True)


def _compute_table(series: Sequence[Series]) -> Table:
    head = (
        "site, kind, k",
        "corners of the hull",
        "m of C",
        "e",
        "R²",
        "n, T: exponents",
        "R²",
        "budget",
        "best n",
        "FVU",
    )
    rows = [
        (
            each.name,
            _corners(each),
            estimate_cell(each.compute and each.compute.exponents[0]),
            estimate_cell(each.compute and each.compute.irreducible, ".3g"),
            _number(each.compute and each.compute.r2, ".3f"),
            " and ".join(f"{m:.2f}" for m in each.tokens.exponents) if each.tokens else MISSING,
            _number(each.tokens and each.tokens.r2, ".3f"),
            _number(each.optimum and each.optimum.flops, ".2g"),
            estimate_cell(each.optimum and each.optimum.n_latents, ",.0f"),
            _number(each.optimum and each.optimum.loss, ".3f"),
        )
        for each in series
    ]
    return Table(head, rows, wide=True)


def _corners(series: Series) -> Cell:
    return Cell(str(len(series.hull)), f"n {_range([p.n_latents for p in series.hull])}" if series.hull else "")


def _set_table(laws: Laws) -> Table:
    head = ("set, site", "n", "k", "FVU", "L0", "dead", "rise of the loss", "FLOP")
    rows = [
        (
            Cell(p.name, str(p.site)),
            f"{p.n_latents:,}",
            str(p.k),
            f"{p.fvu:.4f}",
            f"{p.l0:.1f}",
            f"{p.dead:.1%}",
            f"{p.rise:.4f}",
            f"{p.flops:.2g}" if p.flops else MISSING,
        )
        for p in laws.points
    ]
    return Table(head, rows)


def _metric_table(metrics: SetMetrics) -> Table:
    """All numbers of one dictionary."""
    rows: list[tuple[str | Cell, ...]] = [
        (
            Cell(METRICS[name].title, METRICS[name].meaning),
            estimate_cell(measured.value),
            "; ".join(f"{what} {control}" for what, control in measured.controls.items()) or MISSING,
        )
        for name, measured in metrics.numbers.items()
    ]
    rows += [
        (f"FVU read at k = {each.k}", estimate_cell(each.fvu), f"by threshold {each.threshold_fvu}")
        for each in metrics.curve
    ]
    rows += [
        (
            Cell(f"probe: {task.name}", f"latent {task.latent}; {task.n_true} of {task.n_tokens} tokens"),
            estimate_cell(task.loss),
            f"component {task.component:.3f}, coordinate {task.channel:.3f}, no input {task.labels_alone:.3f}",
        )
        for task in metrics.tasks
    ]
    return Table(("metric", "value", "beside it"), rows, prose=True)


def _number(value: float | Estimate | None, spec: str) -> str:
    return MISSING if value is None or value != value else format(value, spec)
