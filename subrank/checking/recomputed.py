"""Numbers of a result that were computed again, and whether they are the same.

The language model computes in a precision with machine epsilon eps, and other ways to run it add in another order. Two
numbers agree where they share half of the digits that the precision has, or differ by no more than what sums of small
terms round off:

    |reported - recomputed|  <=  sqrt(eps) max(|reported|, |recomputed|) + 8 eps

float32: a share of 3.5e-4, and 9.5e-7; bfloat16: 0.09 and 0.06; float16: 0.03 and 0.008.
What was seen on storybook is a share of 1.1e-5, or 2e-7, at most (`benchmarks/RESULTS.md`). The rest is room for codes
of a TopK dictionary that are as good as tied and change places, which moves a token by more, and for other processors.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from sae_core.codec import to_plain
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Progress
from sae_core.seeds import generator_for

T = TypeVar("T")
NAMED = 5
"""Numbers that disagree which a line names, at most."""


@dataclass(frozen=True)
class Recomputed:
    """A reported number, and what the plain reference makes of it."""

    what: str
    """Of what it is, in words."""
    reported: float
    recomputed: float
    room: float = 0.0
    """Beyond the formula above, what rounding may change: of ranks, the share that may change places."""

    @property
    def difference(self) -> float:
        """|reported - recomputed|, 0 where both are the same or both no numbers, infinite where one of them is none."""
        if self.reported == self.recomputed or (math.isnan(self.reported) and math.isnan(self.recomputed)):
            return 0.0
        difference = abs(self.reported - self.recomputed)
        return math.inf if math.isnan(difference) else difference


@dataclass(frozen=True)
class Check:
    """What was computed again of a result."""

    numbers: tuple[Recomputed, ...]
    dtype: str
    """The precision in which the language model computed."""

    def allowed(self, number: Recomputed) -> float:
        """The difference up to which a number agrees."""
        eps = torch.finfo(getattr(torch, self.dtype)).eps
        compared = 0 < number.difference < math.inf
        size = max(abs(number.reported), abs(number.recomputed)) if compared else 0.0
        return math.sqrt(eps) * size + 8 * eps + number.room

    @property
    def disagreeing(self) -> list[Recomputed]:
        """The numbers that are not the same."""
        return [number for number in self.numbers if not number.difference <= self.allowed(number)]

    @property
    def worst(self) -> Recomputed | None:
        """The number whose difference is the largest share of what is allowed; None where there are no numbers."""
        return max(self.numbers, key=lambda number: number.difference / self.allowed(number), default=None)

    def to_json(self) -> dict[str, Any]:
        """All numbers, and what `from_plain` does not read: how many disagree."""
        return to_plain(self) | {"disagreeing": len(self.disagreeing), "line": self.line()}

    def line(self) -> str:
        """The outcome in words."""
        wrong, worst = self.disagreeing, self.worst
        if worst is None:
            return "checked: this result holds no number that full forward passes can compute again"
        if not wrong:
            return (
                f"checked: {len(self.numbers)} numbers computed again by full forward passes with hooks; largest "
                f"difference {worst.difference:.1e}, where {self.allowed(worst):.1e} is rounding ({worst.what})"
            )
        named = (f"{n.what} is reported as {n.reported:.7g} and is {n.recomputed:.7g}" for n in wrong[:NAMED])
        return (
            f"WRONG NUMBERS: {len(wrong)} of {len(self.numbers)} disagree with full forward passes with hooks: "
            f"{'; '.join(named)}{'; ...' if len(wrong) > NAMED else ''}"
        )


def drawn(values: Sequence[T], n: int, seed: int, *purpose: object) -> list[T]:
    """At most `n` of the values, drawn at random, in their order."""
    order = torch.randperm(len(values), generator=generator_for(seed, "check", *purpose))[:n]
    return [values[i] for i in order.sort().values.tolist()]


def check_of(
    model: LanguageModel, is_wanted: bool, on_progress: OnProgress, recomputed: Callable[[], Iterable[Recomputed]]
) -> Check | None:
    """The check of a result of `model` by what `recomputed` computes; None where none is wanted."""
    if not is_wanted:
        return None
    on_progress(Progress("computing a sample of the numbers again by full forward passes", 0, None))
    return Check(tuple(recomputed()), str(model.dtype).removeprefix("torch."))
