"""How much of a removal to run, and what comes out of it."""

from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from editing.removal.evaluation import GONE, Removal
from editing.removal.frontier import STRENGTHS, Frontier
from editing.removal.versus_leace import LeaceComparison, verdict
from editing.tasks.score import TaskScore
from sae_core.codec import to_plain
from sae_core.errors import UserError
from sae_core.model.language_model import Intervention

HIDDEN = 0.15  # within sentences, where some dozen prompts leave chance a wide berth
FEWEST_CONTEXTS = 4
"""Of text to choose by and of text to report on, each: an interval over fewer contexts says nothing."""


@dataclass(frozen=True)
class RemovalConfig:
    """How much to run; raises `UserError` for what cannot be run."""

    selection_prompts: int = 160
    """To choose features and strength, and as many again, with other names, to check the choice."""
    test_prompts: int = 256
    greedy_prompts: int = 64
    """Of the selection prompts, those on which features are tried one by one."""
    shortlist: int = 16
    max_features: int = 16
    budget: float = 0.05
    """Nats per token that features, and every strength that is tuned, may cost on the text for choosing."""
    text_contexts: int = 48
    """Held-out contexts, the first half for choosing and the second for the reported damage."""
    random_draws: int = 3
    """At the chosen site; one at the others."""
    strengths: tuple[float, ...] = STRENGTHS
    """Of the frontier, as shares of each method's own, in ascending order."""
    seed: int = 0
    prepend_bos: bool = True

    def __post_init__(self):
        least = {"selection_prompts": 4, "test_prompts": 4, "greedy_prompts": 4, "shortlist": 1, "max_features": 1}
        least |= {"text_contexts": 2 * FEWEST_CONTEXTS, "random_draws": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise UserError(f"{name} must be {smallest} or more; got {getattr(self, name)}")
        if not (isfinite(self.budget) and self.budget > 0):
            raise UserError(f"the budget must be a positive number of nats per token; got {self.budget}")
        if not self.strengths or list(self.strengths) != sorted({*self.strengths}) or not self.strengths[0] >= 0:
            raise UserError(f"strengths must be one or more, ascending, none negative; got {self.strengths}")


@dataclass(frozen=True)
class RemovalResult:
    """The capability, the methods at the chosen site, the same at every other site, and at all layers at once."""

    own: TaskScore
    own_auroc: float
    site: str
    methods: tuple[Removal, ...]
    elsewhere: tuple[Removal, ...]
    """The methods at the sites that were not chosen."""
    best: str | None
    """The method with the least damage among those after which the capability is gone; None if none is."""
    unedited: Removal | None = None
    """The same figures without an edit: what a probe reads there, the transfer tasks."""
    everywhere: tuple[Removal, ...] = ()
    """The methods applied at every layer at once."""
    frontiers: tuple[Frontier, ...] = ()
    comparisons: tuple[LeaceComparison, ...] = ()
    """Features beside LEACE, site by site; none where the classes are no concept."""
    task: str = "pronouns"
    answers: tuple[str, str] = ("she", "he")
    example: str = ""
    notes: tuple[str, ...] = ()
    """What the transfer tasks are and the model's own score there; what was left out, and why."""
    resampled: str = "templates, then prompts"
    """What the intervals of prompts draw with replacement."""
    budget: float = RemovalConfig.budget
    edits: tuple[Intervention, ...] = field(default=(), repr=False, compare=False)
    """The features' edit at the chosen site, without mask."""

    def sentence(self) -> str:
        """The outcome at the chosen site in words."""
        if self.best is None:
            return f"at {self.site} no method removes the capability (AUROC within {GONE} of 0.5)"
        least = next(m for m in self.methods if m.method == self.best)
        others = [m for m in self.methods if m.gone and m is not least]
        beside = "; ".join(f"{m.method} {m.damage.value:.4f}" for m in others) or "nothing else removes it at this site"
        cost = f"{least.damage.value:.4f} nats per token"
        left = least.within.value
        within = "" if left <= 0.5 + HIDDEN else f", though within single sentences {left:.2f} is left"
        return f"at {self.site} the least damage that removes it is that of {self.best}: {cost} ({beside}){within}"

    def verdict(self) -> str:
        """Whether features reach chance with less damage than LEACE at the same layer, in plain words."""
        return verdict(self.comparisons)

    def to_json(self) -> dict[str, Any]:
        """All numbers, and the outcome in words; without the edits' tensors."""
        numbers = to_plain(replace(self, edits=()))
        del numbers["edits"]
        for row, frontier in zip(numbers["frontiers"], self.frontiers, strict=True):
            row["damage_when_gone"] = frontier.damage_when_gone()
        return numbers | {"sentence": self.sentence(), "verdict": self.verdict()}
