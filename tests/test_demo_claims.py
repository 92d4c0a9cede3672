"""What the README says of a demo holds of a fresh one, on this processor, within what stands beside each claim.

Dictionaries are trained on the machine, and trained numbers differ between processors: a figure may be off by its
factor, and who wins may not change at all where the README says that somebody does.
"""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from planted import unchecked

import subrank as sr
from editing.removal.measurement.evaluation import Method
from subrank.cli import command

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from make_pictures import kl  # noqa: E402  (the script that makes the README's table)

pytestmark = pytest.mark.slow
LEACE, MEANS, FEATURES = (str(method) for method in (Method.LEACE, Method.MEANS, Method.FEATURES))


class Demo:
    """The results of a demo."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ioi = {result["corruption"]: result for result in sr.load_result(folder / "ioi").to_dict()["ioi"]}
        self.removal = sr.load_result(folder / "remove").result
        self.circuit = sr.load_result(folder / "circuit").evaluation

    def kl(self, corruption: str, name: str, n: int) -> float:
        return kl(self.ioi[corruption], name, n)

    def damage(self, method: str, everywhere: bool = False) -> float:
        """At the share that is to be removed; infinite where it never is."""
        site = (self.removal.everywhere if everywhere else self.removal.methods)[0].site
        curves = {str(name): curve for name, curve in self.removal.curves_at(site).items()}
        needed = curves[method].at(self.removal.share).damage
        return math.inf if needed is None else needed


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Demo:
    folder = tmp_path_factory.mktemp("fresh") / "demo"
    with unchecked():
        assert command.main(["demo", "--out", str(folder)]) == 0
    return Demo(folder)


@dataclass(frozen=True)
class Figure:
    """A number of the README's table of results."""

    row: str
    """How its row begins."""
    place: str
    """What stands before the number in that row."""
    of: Callable[[Demo], float]
    factor: float
    """By how much a fresh demo's may be larger or smaller."""

    @property
    def written(self) -> float:
        (line,) = (line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| {self.row}"))
        number = re.search(re.escape(self.place) + r" ([0-9.e+-]+)", line.split("|", 2)[2])
        assert number, f"{self.row!r} of the README has no number behind {self.place!r}"
        return float(number[1])


def patched(row: str, corruption: str, n: int) -> list[Figure]:
    """The features' number and PCA's."""
    return [
        Figure(row, "", lambda demo: demo.kl(corruption, "dictionary", n), 4),
        Figure(row, "PCA", lambda demo: demo.kl(corruption, "PCA", n), 2),
    ]


def removed(row: str, everywhere: bool) -> list[Figure]:
    return [
        Figure(row, "", lambda demo: demo.damage(FEATURES, everywhere), 30),
        Figure(row, "LEACE", lambda demo: demo.damage(LEACE, everywhere), 10),
    ]


FIGURES = [
    *patched("IOI, only the indirect object differs", "io", 16),
    *patched("the same after 64", "io", 64),
    *patched("IOI, names swap roles", "swap", 16),
    *removed("pronouns, resid_post", False),
    *removed("pronouns, all layers", True),
    Figure("the circuit of", "", lambda demo: demo.circuit.reached[-1].faithfulness.value, 1.8),
    Figure("the circuit of", "ceiling (all latents)", lambda demo: demo.circuit.reached[-1].ceiling.value, 1.1),
]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: f"{figure.row} {figure.place}".strip())
def test_a_figure_of_the_table(figure, demo):
    fresh = figure.of(demo)
    assert figure.written / figure.factor < fresh < figure.written * figure.factor


def test_few_features_patch_better_than_pca_and_many_do_not(demo):
    assert demo.kl("swap", "dictionary", 16) < 0.5 * demo.kl("swap", "PCA", 16)
    assert demo.kl("io", "dictionary", 16) < demo.kl("io", "PCA", 16)
    assert demo.kl("io", "PCA", 64) < demo.kl("io", "dictionary", 64)


def test_features_remove_at_less_damage_than_the_best_leace(demo):
    """At the chosen site by ten times, and at four sites of six at least."""
    removal = demo.removal
    against = [each for each in removal.comparisons if each.rival is Method.LEACE and each.share == removal.share]
    sites = [each for each in against if each.site.startswith("resid_post")]
    assert len(sites) == 6 and sum(each.better for each in sites) >= 4, against
    assert demo.damage(FEATURES) < min(each.other.damage or math.inf for each in sites) / 10


def test_the_circuit_carries_more_than_one_of_first_order(demo):
    controls, whole = demo.circuit.controls[0], demo.circuit.reached[-1]
    assert whole.faithfulness.value > controls.first_order.ablated.value > -0.1
    assert controls.best_random.ablated.value < 0.1 < 0.8 < whole.ceiling.value


def test_dictionaries_are_as_good_as_it_says(demo):
    quality = sr.load(demo.folder / "dictionaries").quality
    assert quality and max(each.fvu for each in quality.quality.values()) < 0.2


def test_the_index_is_short_and_links_to_what_is_there(demo):
    index = (demo.folder / "index.html").read_text()
    links = re.findall(r'href="([\w/]+\.html)', index)
    assert len(links) > 5 and all((demo.folder / link).is_file() for link in links)
