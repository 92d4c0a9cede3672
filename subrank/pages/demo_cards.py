"""The results that the demo's index opens with: to each a picture, what it says, and a table to unfold."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from circuits.graph import FeatureGraph
from editing.ioi.figure import kl_figure
from editing.ioi.result import IOIResult
from editing.removal.figure import removal_figure
from editing.removal.result import RemovalResult
from editing.set_quality import SetQuality
from subrank.pages.circuit_page import edges_table
from subrank.pages.evaluation_page import first_numbers
from subrank.pages.ioi_page import curve_table, difference
from subrank.pages.page import Table, figure, picture, sentence
from subrank.pages.removal_page import needed_table

HEIGHT = 400
"""Of a figure, in pixels."""
DRAWINGS = ("circuit_story.svg", "circuit.svg")
"""Pictures of a circuit, the one for newcomers first."""
COUNTS = (1, 4, 16, 64)
"""Numbers of patched features in the table."""


def rounded(text: str) -> str:
    """A sentence with its decimals to two digits, which is what intervals leave; exact numbers are behind the links."""

    def two_digits(number: re.Match) -> str:
        value = float(number[0])
        return f"{value:.0f}" if value >= 10 else f"{value:.2g}"

    return sentence(re.sub(r"(?<![\w.])\d+\.\d+", two_digits, text))


@dataclass(frozen=True)
class DemoCard:
    """One result on the index."""

    title: str
    picture: Markup
    caption: str
    """What the picture shows."""
    sentences: Sequence[str]
    """What was measured."""
    tables: Sequence[tuple[str, Table]]
    """What each is of, and its numbers."""
    links: Sequence[tuple[str, str]] = ()
    """Addresses of pages, from the index's folder, with words; shown where there is such a page."""


def ioi_card(results: Sequence[IOIResult]) -> DemoCard:
    """Patching: the divergence left after so many features, of the pairs whose names swap roles where there are any."""
    shown = next((result for result in results if result.corruption == "swap"), results[0])
    ordered = sorted(results, key=lambda result: result is not shown)
    score = f"The model is right on {shown.own.accuracy.value:.0%} of {shown.own.n} prompts."
    return DemoCard(
        "Patching: which features carry the indirect object",
        figure(kl_figure(shown).update_layout(height=HEIGHT)),
        f"Features of one prompt are patched into another, in which {difference(shown)}, at {shown.site}. "
        "Lower is closer to the first prompt's prediction. Bands: 95% intervals.",
        [score, *(rounded(f"{difference(r)}, {r.sentences()[0]}") for r in ordered)],
        [("KL left after so many features, nats", curve_table(shown.main(), "kl", COUNTS))],
        [("ioi/ioi.html", "the whole experiment")],
    )


def circuit_card(folder: Path, graph: FeatureGraph, sentences: Sequence[str]) -> DemoCard:
    """The circuit with its drawing in `folder`, if there is one, and what is known of how good it is."""
    drawn = [name for name in DRAWINGS if (folder / name).is_file()]
    alt = f"The circuit of {graph.target}: {len(graph.nodes)} nodes with arrows from causes to what they affect"
    return DemoCard(
        "The circuit behind a closing bracket",
        picture(f"{folder.name}/{drawn[0]}", alt) if drawn else Markup(),
        f"Features that cause {graph.target} to be active. An arrow: the share of its target's activation that is "
        "lost when its cause alone is ablated.",
        [rounded(text) for text in sentences],
        [("The strongest edges", edges_table(graph, 8))],
        [
            (f"{folder.name}/explore/index.html", "explore it: examples, cards, all features"),
            (f"{folder.name}/circuit.html", "how good it is"),
        ],
    )


def dictionaries_table(quality: SetQuality) -> Table:
    """What each dictionary misses, a row to a site."""
    rows = []
    for site, measured in quality.quality.items():
        fvu, _, _, l0, dead = first_numbers(measured)
        rows.append((str(site), fvu, l0, dead, f"{quality.cost[site].recovered:.3f}"))
    return Table(("site", "FVU", "L0", "dead", "loss recovered"), rows)


def removal_card(result: RemovalResult) -> DemoCard:
    """Removal: capability left against damage, and what removing a share takes."""
    needed = needed_table(result, result.site)
    plot = removal_figure(replace(result, everywhere=())).update_layout(height=HEIGHT).update_yaxes(title_font_size=11)
    return DemoCard(
        f"Removing {Path(result.task).name} by ablating features",
        figure(plot),
        f"How well the model tells “{result.answers[0]}” from “{result.answers[1]}”, against what the edit changes in "
        "other text. Down is removed, left is harmless.",
        [rounded(result.sentence())],
        [("Damage at which a share is removed, nats per token", needed)] if needed else [],
        [("remove/remove.html", "the whole experiment")],
    )
