"""How much of a removal to run, and what comes out of it."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from editing.comparison import Comparison, verdict
from editing.frontier import STRENGTHS, Frontier
from editing.judging import GONE, Removal
from editing.tasks.pairs import OwnScore
from sae_core.models import Intervention

HIDDEN = 0.15  # within sentences, where some dozen prompts leave chance a wide berth


@dataclass(frozen=True)
class RemovalConfig:
    """How much to run."""

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
    """Held-out contexts, half for choosing the site and half for the reported damage."""
    random_draws: int = 3
    """At the chosen site; one at the others."""
    strengths: tuple[float, ...] = STRENGTHS
    """Of the frontier, as shares of each method's own."""
    seed: int = 0
    prepend_bos: bool = True


@dataclass(frozen=True)
class RemovalResult:
    """The capability, the methods at the chosen site, the same at every other site, and at all layers at once."""

    own: OwnScore
    own_auroc: float
    site: str
    methods: tuple[Removal, ...]
    elsewhere: tuple[Removal, ...]
    """The methods at the sites that were not chosen."""
    best: str | None
    """The method with the least damage among those after which the capability is gone; None if none is."""
    everywhere: tuple[Removal, ...] = ()
    """The methods applied at every layer at once."""
    frontiers: tuple[Frontier, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    """Features beside LEACE, site by site."""
    task: str = "pronouns"
    answers: tuple[str, str] = ("she", "he")
    example: str = ""
    transfer: str = ""
    """What the transfer task is and the model's own score there."""
    budget: float = RemovalConfig.budget
    edits: tuple[Intervention, ...] = field(default=(), repr=False, compare=False)
    """The features' edit at the chosen site, without mask."""

    def sentence(self) -> str:
        """The outcome at the chosen site in words."""
        if self.best is None:
            return f"at {self.site} no method removes the capability (AUROC within {GONE} of 0.5)"
        least = next(m for m in self.methods if m.method == self.best)
        others = [m for m in self.methods if m.gone and m is not least]
        beside = "; ".join(f"{m.method} {m.damage:.4f}" for m in others) or "nothing else removes it at this site"
        cost = f"{least.damage:.4f} nats per token"
        within = "" if least.within <= 0.5 + HIDDEN else f", though within single sentences {least.within:.2f} is left"
        return f"at {self.site} the least damage that removes it is that of {self.best}: {cost} ({beside}){within}"

    def verdict(self) -> str:
        """Whether features reach chance with less damage than LEACE at the same layer, in plain words."""
        return verdict(self.comparisons)

    def to_json(self) -> dict[str, Any]:
        """All numbers, and the outcome in words; without the edits' tensors."""
        numbers = asdict(replace(self, edits=()))
        del numbers["edits"]
        numbers["frontiers"] = [
            {**row, "damage_when_gone": one.damage_when_gone()}
            for row, one in zip(numbers["frontiers"], self.frontiers, strict=True)
        ]
        return numbers | {"sentence": self.sentence(), "verdict": self.verdict()}
