"""What comes out of a removal: figures of every method at every site, and the outcome in words."""

from dataclasses import dataclass, field, replace
from typing import Any

from editing.removal.comparisons import Frontier, LeaceComparison, verdict
from editing.removal.config import RemovalConfig
from editing.removal.evaluation import GONE, Removal
from editing.tasks.score import TaskScore
from sae_core.codec import to_plain
from sae_core.model.language_model import Intervention

HIDDEN = 0.15
"""A group-conditional AUROC further above 0.5 is mentioned in the outcome: within a sentence there are some dozen
prompts, and chance alone leaves it a little above 0.5."""


@dataclass(frozen=True)
class RemovalResult:
    """The model's own score, and the methods at the chosen site, at every other site and at all layers at once."""

    own: TaskScore
    """Of the unedited model on the test prompts."""
    own_auroc: float
    site: str
    """The chosen site."""
    methods: tuple[Removal, ...]
    """The methods at the chosen site."""
    elsewhere: tuple[Removal, ...]
    """The methods at the sites that were not chosen."""
    best: str | None
    """The method with the least damage of those that remove the capability; None if none does."""
    unedited: Removal | None = None
    """The same figures without an edit, those of the probe and the transfer tasks included."""
    everywhere: tuple[Removal, ...] = ()
    """The methods applied at every layer at once."""
    frontiers: tuple[Frontier, ...] = ()
    comparisons: tuple[LeaceComparison, ...] = ()
    """Features beside LEACE, site by site; none where the classes are no concept."""
    task: str = "pronouns"
    answers: tuple[str, str] = ("she", "he")
    example: str = ""
    notes: tuple[str, ...] = ()
    """The transfer tasks with the model's own score there; what was left out, and why."""
    resampled: str = "templates, then prompts"
    """What is drawn with replacement for the intervals over prompts."""
    budget: float = RemovalConfig.budget
    edits: tuple[Intervention, ...] = field(default=(), repr=False, compare=False)
    """The features' edit at the chosen site, without mask."""

    def sentence(self) -> str:
        """The outcome at the chosen site in words."""
        if self.best is None:
            closest = min(self.methods, key=lambda method: abs(method.auroc.value - 0.5))
            return (
                f"At {self.site} no method removes the capability (AUROC within {GONE} of 0.5); closest comes "
                f"“{closest.method}”, with AUROC {closest.auroc.value:.2f} at {closest.damage.value:.4f} nats per token"
            )
        best = next(method for method in self.methods if method.method == self.best)
        others = [method for method in self.methods if method.gone and method is not best]
        beside = "; ".join(f"“{method.method}” needs {method.damage.value:.4f}" for method in others)
        left = best.within.value
        hidden = f", though within single sentences an AUROC of {left:.2f} is left" if left > 0.5 + HIDDEN else ""
        return (
            f"At {self.site} “{best.method}” removes the capability with the least damage, {best.damage.value:.4f} "
            f"nats per token{hidden}; {beside or 'no other method removes it'}"
        )

    def verdict(self) -> str:
        """Whether features remove the capability with less damage than LEACE at the same site, in sentences."""
        return verdict(self.comparisons)

    def to_json(self) -> dict[str, Any]:
        """All figures, and the outcome in words, without the edits; `from_plain(RemovalResult, ...)` reads it back."""
        plain = to_plain(replace(self, edits=()))
        del plain["edits"]
        for row, frontier in zip(plain["frontiers"], self.frontiers, strict=True):
            row["damage_when_gone"] = frontier.damage_when_gone()
        return plain | {"sentence": self.sentence(), "verdict": self.verdict()}
