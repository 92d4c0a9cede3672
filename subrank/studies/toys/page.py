"""The finding of a study of superposition in words, and its page."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from markupsafe import Markup

from subrank.pages.page import Table, estimate_cell, figure, render
from subrank.studies.toys.dictionaries import DICTIONARIES, FOUND, Recovery
from subrank.studies.toys.models import linear_optimum
from subrank.studies.toys.solution import Solution

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

NEAR = 0.1
"""Share by which a loss may be above the least possible and count as that; it is measured on so many rows."""


def sentences(
    linear: Sequence[Solution], relu: Sequence[Solution], importance: Sequence[float], recoveries: Sequence[Recovery]
) -> list[str]:
    """What the models of either kind, from dense to sparse, show, and what the dictionaries find."""
    m, crowded = len(relu[0].weights), [s for s in relu if len(s.represented) > len(s.weights)]
    first = crowded[:1] if crowded[:1] not in ([relu[0]], [relu[-1]]) else []
    named = [("The densest ReLU model", relu[0]), *(("The first with more features than dimensions", s) for s in first)]
    named += [("The sparsest", relu[-1])] if len(relu) > 1 else []
    return [_linear(linear, torch.tensor(importance), m), *(_state(*each) for each in named), *_found(recoveries)]


def _linear(solutions: Sequence[Solution], importance: torch.Tensor, m: int) -> str:
    """Whether the linear models are where theory has them."""
    off, excess = 0.0, 0.0
    for solution in solutions:
        projector, _, least = linear_optimum(importance, m, solution.model.density)
        off = max(off, (solution.W.T @ solution.W - projector).abs().max().item())
        excess = max(excess, solution.losses[0] / least - 1)
    words = "does what PCA does" if excess < NEAR else "is not where PCA is (give more --steps)"
    text = f"The linear model {words}, whatever the density: its loss is at most {excess:.1%} above the least possible"
    if importance.unique().numel() < len(importance):  # any m dimensions are as good as the first ones
        return text + "."
    return f"{text}, and WᵀW at most {off:.2f} from the projector on the {m} most important features."


def _state(name: str, solution: Solution) -> str:
    """What a model represents, and how."""
    words = [f"{_listed(solution.alone)} alone" if solution.alone else "none alone"]
    if solution.pairs:
        listed = ", ".join(f"{i + 1}&{j + 1}" for i, j in solution.pairs)
        words.append(f"{len(solution.pairs)} antipodal pairs ({listed})")
    words.append(f"{solution.per_feature:.2f} dimensions each")
    words.append(f"biases {_rounded(min(solution.bias))} to {_rounded(max(solution.bias))}")
    represented = f"{len(solution.represented)} of {len(solution.norms)} features"
    return f"{name} (1−S = {solution.model.density:g}) represents {represented}: {', '.join(words)}."


def _rounded(value: float) -> str:
    """Two digits, and no minus before zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def _listed(features: Sequence[int]) -> str:
    """Features as they are numbered from 1, a run of them by its ends."""
    if len(features) > 2 and features[-1] - features[0] == len(features) - 1:
        return f"{features[0] + 1} to {features[-1] + 1}"
    return ", ".join(str(feature + 1) for feature in features)


def _found(recoveries: Sequence[Recovery]) -> list[str]:
    """The dictionaries at both ends."""
    ends = [recoveries[-1], recoveries[0]] if len(recoveries) > 1 else recoveries
    return [
        f"Dictionaries on h at 1−S = {each.density:g} find {each.found:.0%} of the {each.n_represented} features "
        f"(random ones {each.chance_found:.0%}): mean largest cosine {each.cosine}, by chance {each.chance}."
        for each in ends
    ]


def superposition_section(
    solutions: Sequence[Solution],
    importance: Sequence[float],
    recoveries: Sequence[Recovery],
    lines: Sequence[str],
    figures: "Mapping[str, Figure]",
) -> Markup:
    """The page: the lecture's picture, what is seen in it, dimensions per feature, and what dictionaries find."""
    return render(
        "superposition.html",
        n=len(importance),
        m=len(solutions[0].weights),
        ratio=f"{importance[1] / importance[0]:g}",
        lines=lines,
        plots={name: figure(plot) for name, plot in figures.items()},
        models=_model_table(solutions),
        recoveries=_recovery_table(recoveries),
        n_dictionaries=DICTIONARIES,
        copies=max(len(solution.losses) for solution in solutions),
        found=FOUND,
    )


def _model_table(solutions: Sequence[Solution]) -> Table:
    head = ("model", "1−S", "represented", "alone", "paired", "m / |W|²", "least bias", "most", "loss", "worst copy")
    rows = [
        (
            s.model.kind,
            f"{s.model.density:g}",
            str(len(s.represented)),
            str(len(s.alone)),
            str(2 * len(s.pairs)),
            f"{s.per_feature:.2f}",
            _rounded(min(s.bias)),
            _rounded(max(s.bias)),
            f"{s.losses[0]:.3g}",
            f"{s.losses[-1]:.3g}",
        )
        for s in solutions
    ]
    return Table(head, rows)


def _recovery_table(recoveries: Sequence[Recovery]) -> Table:
    head = ("1−S", "k", "features", "mean largest cosine", "by chance", "found", "by chance", "FVU")
    rows = [
        (
            f"{r.density:g}",
            str(r.k),
            str(r.n_represented),
            estimate_cell(r.cosine),
            estimate_cell(r.chance),
            f"{r.found:.0%}",
            f"{r.chance_found:.0%}",
            f"{r.fvu:.3f}",
        )
        for r in recoveries
    ]
    return Table(head, rows)
