"""The finding of a study of splitting in words, its pictures, and its page."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING

from markupsafe import Markup

from editing.plotting import AMBER, BLUE, GREEN, GREY, PURPLE, RED, error_bars, styled
from sae_core.estimate import Estimate
from sae_core.sites import FeatureId, Site
from subrank.pages.page import Cell, Table, figure, render
from subrank.studies.relations.families import NEAR, NOBODY, TOGETHER
from subrank.studies.relations.shares import percent
from subrank.studies.relations.splitting_step import Step

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FAMILIES, CHILDREN = 12, 4
"""Of the smallest set, the largest, which are drawn, and children of each feature in them."""
SAME_START = 0.2
"""Share of parents that have their child's number from which on a line says what that means."""
_SAME_START = (
    " Beware: {} of the parents have their child's number. The sets began from the same directions, as those of one "
    "seed do; compare sets of different seeds."
)
SHARES = {"kept": BLUE, "split": AMBER, "gone": GREY, "coalesced": RED, "new": GREEN, "split_together": PURPLE}


def sentences(steps: Sequence[Step]) -> list[str]:
    """A sentence for each step."""
    return [
        f"{step.site}, {step.small} ({step.n_small}) → {step.large} ({step.n_large}): {percent(step.kept)} kept, "
        f"{percent(step.split)} split, {percent(step.gone)} gone, {percent(step.coalesced)} coalesced; "
        f"{percent(step.new)} of the larger are new (of random directions {percent(step.new_by_chance)}). "
        f"By activity {percent(step.split_together)} split (by chance {percent(step.split_together_by_chance)})."
        + (_SAME_START.format(percent(step.same_number)) if step.same_number.value > SAME_START else "")
        for step in steps
    ]


class Parents(StrEnum):
    """By what latents are given parents."""

    DIRECTION = "families by direction"
    ACTIVITY = "families by activity"


Labels = Mapping[str, Mapping[Site, Sequence[str]]]
"""What latents respond to, by set and site."""


def family_figure(steps: Sequence[Step], by: Parents, labels: Labels) -> "Figure | None":
    """The largest families at the last site, from the smallest set to the largest, as a Sankey diagram.

    None where there are no families.
    """
    from plotly.graph_objects import Figure, Sankey

    site = steps[-1].site
    along = [step for step in steps if step.site == site]
    parents_of = [step.parents if by is Parents.DIRECTION else step.parents_by_activity for step in along]
    leaves = _leaves(parents_of)
    roots = [root for root, n in leaves[0].most_common(FAMILIES) if n > 0]
    nodes, shown = [(0, root) for root in roots], set(roots)
    links: list[tuple[tuple[int, int], tuple[int, int], float]] = []
    for level, parents in enumerate(parents_of):
        sizes = leaves[level + 1] if level + 1 < len(leaves) else Counter()
        children = _children(parents, shown, sizes)
        links += [((level, parents[j]), (level + 1, j), max(1, sizes[j])) for j in children]
        nodes += [(level + 1, j) for j in children]
        shown = set(children)
    if not links:
        return None
    place = {node: number for number, node in enumerate(nodes)}
    names = [along[0].small, *(step.large for step in along)]
    levels = max(1, len(along))
    words = [labels[names[level]][site][latent] if labels else "" for level, latent in nodes]
    latents = [f"{FeatureId(site, latent)}" for _, latent in nodes]
    drawn = Sankey(
        node={
            "label": [" ".join(filter(None, each)) for each in zip(latents, words, strict=True)],
            "x": [0.001 + 0.998 * level / levels for level, _ in nodes],
            "color": [(BLUE, AMBER, GREEN, RED)[level % 4] for level, _ in nodes],
            "customdata": [names[level] for level, _ in nodes],
            "hovertemplate": "%{label} of %{customdata}<extra></extra>",
            "pad": 4,
        },
        link={
            "source": [place[parent] for parent, _, _ in links],
            "target": [place[child] for _, child, _ in links],
            "value": [value for _, _, value in links],
            "color": "rgba(107, 114, 128, 0.3)",
            "hovertemplate": "%{source.label} → %{target.label}<extra></extra>",
        },
    )
    return styled(Figure(drawn), height=130 + 15 * max(30, *Counter(level for level, _ in nodes).values()))


def _children(parents: Sequence[int], of: Set[int], sizes: Counter[int]) -> list[int]:
    """The children of some latents, of each those that have the most descendants, in order."""
    by_parent = defaultdict[int, list[int]](list)
    for j in sorted(range(len(parents)), key=lambda j: -sizes[j]):
        if parents[j] in of and len(by_parent[parents[j]]) < CHILDREN:
            by_parent[parents[j]].append(j)
    return sorted(chain(*by_parent.values()))


def _leaves(parents_of: Sequence[Sequence[int]]) -> list[Counter[int]]:
    """For each set but the largest: how many latents of the largest descend from each of its latents."""
    below: list[Counter[int]] = []
    weights: Counter[int] | None = None
    for parents in reversed(parents_of):
        counted: Counter[int] = Counter()
        for j, parent in enumerate(parents):
            if parent != NOBODY:
                counted[parent] += 1 if weights is None else max(1, weights[j])
        weights = counted
        below.append(counted)
    return below[::-1]


def shares_figure(steps: Sequence[Step]) -> "Figure":
    """What becomes of the features of the smaller sets, and what is new in the larger, step by step."""
    from plotly.graph_objects import Bar, Figure

    drawn, names = Figure(), [f"{step.site}<br>{step.small} → {step.large}" for step in steps]
    for name, colour in SHARES.items():
        values: list[Estimate] = [getattr(step, name) for step in steps]
        bars = error_bars(values, thickness=1)
        look = {"name": name.replace("split_together", "split, by activity"), "marker": {"color": colour}}
        drawn.add_trace(Bar(x=names, y=[v.value for v in values], error_y=bars, **look))
    drawn.update_yaxes(title_text="share of the latents", tickformat=".0%")
    return styled(drawn, height=400)


def splitting_section(
    steps: Sequence[Step], sizes: Mapping[str, Mapping[Site, int]], figures: "Mapping[str, Figure]"
) -> Markup:
    """The page: the largest families, what becomes of all features, and the controls."""
    return render(
        "splitting.html",
        names=list(sizes),
        site=steps[-1].site,
        n_families=FAMILIES,
        n_children=CHILDREN,
        by=[str(each) for each in Parents],
        lines=sentences(steps),
        plots={name: figure(plot) for name, plot in figures.items()},
        steps=_step_table(steps),
        near=NEAR,
        together=TOGETHER,
    )


def _step_table(steps: Sequence[Step]) -> Table:
    names = ("kept", "split", "gone", "coalesced", "new", "alone", "split_together", "agree", "covered", "same_number")
    head = ("site, sets", "latents", *(name.replace("_", " ") for name in names))
    beside = {name: f"{name}_by_chance" for name in ("new", "alone", "split_together", "agree", "covered")}
    rows = [
        (
            Cell(str(step.site), f"{step.small} → {step.large}"),
            f"{step.n_small} → {step.n_large}",
            *(_cell(step, name, beside.get(name)) for name in names),
        )
        for step in steps
    ]
    return Table(head, rows, wide=True)


def _cell(step: Step, name: str, control: str | None) -> Cell:
    value: Estimate = getattr(step, name)
    text = "–" if value.value != value.value else f"{value.value:.1%}"
    by_chance = f"\nchance {percent(getattr(step, control))}" if control else ""
    return Cell(text, (f"[{value.low:.1%}, {value.high:.1%}]" if text != "–" else "") + by_chance)
