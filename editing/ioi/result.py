"""The result of one IOI experiment: numbers, and what they say in words."""

from dataclasses import dataclass
from typing import Any

from editing.ioi.baselines import BASELINE_NAMES, Baseline
from editing.ioi.curve import Curve
from editing.ioi.curve_comparison import CurveComparison
from editing.tasks.ioi import Corruption
from editing.tasks.pairs import Place
from editing.tasks.score import TaskScore
from sae_core.codec import to_plain


@dataclass(frozen=True)
class IOIResult:
    """One corruption at one site, or at several that are patched jointly."""

    corruption: Corruption
    own: TaskScore
    """The model's own on the test prompts."""
    site: str
    """Several are joined by a plus sign."""
    site_kl: dict[str, float]
    """KL on the selection prompts with the 16 features of highest estimate patched, at every candidate site."""
    curves: tuple[Curve, ...]
    floors: dict[str, dict[str, float]]
    """Of every dictionary: KL with nothing, all latents, and the error patched too."""
    shared: tuple[str, ...]
    """What selection and test prompts have in common besides the task."""
    n_selection: int
    n_test: int
    comparisons: tuple[CurveComparison, ...] = ()
    positions: tuple[Place, ...] | None = None
    """The positions that were edited, roles or counted from the end; None for all."""

    def main(self) -> list[Curve]:
        """The curves of the picture: every method, its features chosen the first way."""
        return [curve for curve in self.curves if curve.selection == self.curves[0].selection]

    def sentences(self) -> list[str]:
        """Where the dictionaries beat PCA (else the first baseline), where not, and why."""
        pca, names = BASELINE_NAMES[Baseline.PCA], [comparison.baseline for comparison in self.comparisons]
        baseline = pca if pca in names else next(iter(names), None)
        curves = {curve.name: curve for curve in self.main()}
        return [
            f"{comparison.sentence()}. {comparison.reason(self.floors[name], curves[name])}"
            for comparison in self.comparisons
            for name in [comparison.dictionary]
            if comparison.baseline == baseline
        ]

    def to_json(self) -> dict[str, Any]:
        """All fields, from which `from_plain` reads the result back, and what follows from the comparisons."""
        plain, derived = to_plain(self), ("better", "worse", "crossing", "better_sizes", "worse_sizes")
        for numbers, comparison in zip(plain["comparisons"], self.comparisons, strict=True):
            numbers |= {name: getattr(comparison, name) for name in derived}
        return plain | {"sentences": self.sentences()}
