"""What comes out of a removal: figures and curves of every method at every site, and the outcome in words."""

from dataclasses import dataclass, field, replace
from typing import Any

from editing.removal.config import RemovalConfig
from editing.removal.measurement.comparisons import Comparison, verdict
from editing.removal.measurement.curve import Curve, Needed
from editing.removal.measurement.evaluation import EVERYWHERE, Method, Removal
from editing.tasks.score import TaskScore
from sae_core.codec import to_plain
from sae_core.model.language_model import Intervention


@dataclass(frozen=True)
class RemovalResult:
    """The model's own score, and the methods at the chosen site, at every other site and at all layers at once."""

    own: TaskScore
    """Of the unedited model on the test prompts."""
    own_auroc: float
    site: str
    """The chosen site."""
    methods: tuple[Removal, ...]
    """The methods at the chosen site, each at the strength that was chosen for it."""
    elsewhere: tuple[Removal, ...]
    """The methods at the sites that were not chosen."""
    unedited: Removal
    """The same figures without an edit, those of the probe and the transfer tasks included."""
    share: float = RemovalConfig.share
    """Of the capability, for whose removal sites and strengths were chosen: one of `SHARES`, or the nearest of them."""
    everywhere: tuple[Removal, ...] = ()
    """The methods applied at every layer at once."""
    curves: tuple[Curve, ...] = ()
    """At every site and at all layers at once."""
    comparisons: tuple[Comparison, ...] = ()
    """Features beside every other method, site by site."""
    task: str = "pronouns"
    answers: tuple[str, str] = ("she", "he")
    example: str = ""
    notes: tuple[str, ...] = ()
    """The transfer tasks with the model's own score there; what was left out, and why."""
    resampled: str = "templates, then prompts"
    """What is drawn with replacement for the intervals over prompts."""
    budget: float = RemovalConfig.budget
    skipped: tuple[str, ...] = ()
    """Sites at which no features support the task within the budget."""
    edits: tuple[Intervention, ...] = field(default=(), repr=False, compare=False)
    """The features' edit at the chosen site, without mask."""

    def curves_at(self, site: str) -> dict[Method, Curve]:
        """The curves of one site, by method."""
        return {curve.method: curve for curve in self.curves if curve.site == site}

    def rival(self) -> Method | None:
        """The method that does least damage at the chosen site besides the features, of those that reach the share."""
        needed = {
            each.rival: each.other.damage
            for each in self._here()
            if each.rival in RIVALS and each.other.damage is not None
        }
        return min(needed, key=lambda method: needed[method], default=None)

    def sentence(self) -> str:
        """The outcome at the chosen site: what it takes to remove the share, beside LEACE and the best rival."""
        here = {each.rival: each for each in self._here()}
        features = self.curves_at(self.site)[Method.FEATURES].at(self.share)
        begin = f"At {self.site} ablating features "
        if features.damage is None:
            features_row = next(row for row in self.methods if row.method is Method.FEATURES)
            sentence = f"{begin}never removes {self.share:.0%} of the capability ({features_row.left:.0%} is left)"
        else:
            sentence = f"{begin}removes {self.share:.0%} of the capability at {features} nats per token"
        if Method.LEACE in here:
            sentence += f"; LEACE there {_at(here[Method.LEACE].other)}{self._best_of(Method.LEACE)}"
        row = next(row for row in self.methods if row.method is Method.FEATURES)
        left = [f"{2 * abs(row.within.value - 0.5):.0%} within single sentences"]
        left += [f"{2 * abs(area.value - 0.5):.0%} of {name}" for name, area in row.transfer.items()]
        after = f". The features leave {', '.join(left)}"
        rival = self.rival()
        if rival not in (None, Method.LEACE):
            sentence += f"; {rival} there {_at(here[rival].other)}{self._best_of(rival)}"
        return sentence + after

    def verdict(self) -> str:
        """At how many sites features need less damage than the best LEACE, and than the mean difference."""
        if not any(each.rival is Method.LEACE for each in self.comparisons):
            return verdict(self.comparisons, Method.LEACE, self.share)
        sentences = [verdict(self.comparisons, rival, self.share) for rival in (Method.LEACE, Method.MEANS)]
        if unseen := self.unseen():
            sentences.append(
                f"At {', '.join(unseen)} the features are active nowhere in the text on which damage is measured, so "
                "that what they cost is not known: give more contexts"
            )
        if self.skipped:
            sentences.append(f"At {', '.join(self.skipped)} no features were found, and nothing was compared")
        return ". ".join(sentences)

    def unseen(self) -> tuple[str, ...]:
        """Sites at which the features' edit changes no token of the text, so that its damage of 0 says nothing."""
        rows = [row for row in (*self.methods, *self.elsewhere) if row.method is Method.FEATURES]
        return tuple(row.site for row in rows if not row.damage.value and not row.share_changed)

    def _best_of(self, rival: Method) -> str:
        """Where a rival needs least by the test prompts themselves, which is in its favour; nothing if that is here."""
        elsewhere = [curve for curve in self.curves if curve.method is rival and curve.site != EVERYWHERE]
        reached = [curve for curve in elsewhere if curve.at(self.share).damage is not None]
        best = min(reached, key=lambda curve: curve.at(self.share).damage or 0.0, default=None)
        return "" if best is None or best.site == self.site else f" (its best: {best.at(self.share)} at {best.site})"

    def _here(self) -> list[Comparison]:
        return [each for each in self.comparisons if each.site == self.site and each.share == self.share]

    def to_json(self) -> dict[str, Any]:
        """All figures, and the outcome in words, without the edits; `from_plain(RemovalResult, ...)` reads it back."""
        plain = to_plain(replace(self, edits=()))
        del plain["edits"]
        return plain | {"sentence": self.sentence(), "verdict": self.verdict()}


RIVALS = (Method.LEACE, Method.MEANS, Method.ORTHOGONAL)
"""What features are compared with; random edits are controls."""


def _at(needed: Needed) -> str:
    return "never" if needed.damage is None else f"at {needed}"
