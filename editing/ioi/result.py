"""The result of one IOI experiment: numbers, and what they say in words."""

from dataclasses import dataclass
from typing import Any

from editing.ioi.curve import Curve
from editing.ioi.curve_comparison import CurveComparison
from editing.ioi.feature_selection import PER_PAIR
from editing.ioi.verdict import best_rival, verdict
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
    """Of the curves whose features were chosen on other prompts."""
    positions: tuple[Place, ...] | None = None
    """The positions that were edited, roles or counted from the end; None for all."""
    comparisons_of_pairs: tuple[CurveComparison, ...] = ()
    """Of the curves whose features were chosen for each pair on the pair itself."""

    def main(self) -> list[Curve]:
        """The curves of the picture: every method, its features chosen the first way."""
        return [curve for curve in self.curves if curve.selection == self.curves[0].selection]

    def of_pairs(self) -> list[Curve]:
        """Every method, its features chosen for each pair on the pair itself."""
        return [curve for curve in self.curves if curve.selection == PER_PAIR]

    def sentences(self) -> list[str]:
        """A verdict on every dictionary: features chosen on other prompts, and chosen for each pair on the pair."""
        asked = (("chosen on other prompts", self.main(), self.comparisons),)
        asked += (("chosen for each pair", self.of_pairs(), self.comparisons_of_pairs),)
        return [
            f"{how}: {verdict(name, curves, [c for c in comparisons if c.dictionary == name], self.floors)}"
            for name in self.floors
            for how, curves, comparisons in asked
            if curves
        ]

    def reasons(self) -> list[str]:
        """Why each dictionary ends where it does, beside the baseline that is best with few features."""
        curves = {curve.name: curve for curve in self.main()}
        return [
            comparison.reason(self.floors[comparison.dictionary], curves[comparison.dictionary])
            for name in self.floors
            for comparison in self.comparisons
            if comparison.dictionary == name and comparison.baseline == best_rival(self.main(), self.floors)
        ]

    def to_json(self) -> dict[str, Any]:
        """All fields, from which `from_plain` reads the result back, and what follows from the comparisons."""
        plain, derived = to_plain(self), ("better", "worse", "crossing", "better_sizes", "worse_sizes")
        for key in ("comparisons", "comparisons_of_pairs"):
            for numbers, comparison in zip(plain[key], getattr(self, key), strict=True):
                numbers |= {name: getattr(comparison, name) for name in derived}
        return plain | {"sentences": self.sentences(), "reasons": self.reasons()}
