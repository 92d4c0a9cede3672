"""An edit tried on prompts at rising strengths: the least that removes a given share of the capability, and its cost.

What it costs other text is asked only where that decides: that takes a run of the whole text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, sqrt

import numpy as np
from jaxtyping import Float
from torch import Tensor

from editing.metrics import aurocs
from editing.removal.measurement.curve import strength_needed
from editing.removal.prompts.class_scores import left_within
from editing.removal.prompts.two_class_prompts import TwoClassPrompts

GRID = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
"""Strengths at which an edit is tried first; then where a straight line between two of them says."""
REFINEMENTS = 3


@dataclass(frozen=True)
class Reach:
    """What an edit does to prompts and text for choosing at the strength that is best for it."""

    strength: float
    """The least that removes the wanted share; where none does, the one that removes most."""
    removed: float
    """Share of the capability."""
    damage: float
    """Nats per token."""
    reached: bool
    within: float
    """Capability left within single sentences (`left_within`)."""

    def cost(self) -> tuple[bool, float]:
        """Smaller is better: less damage among those that remove the share, else more removed."""
        return not self.reached, self.damage if self.reached else -self.removed

    def rank(self) -> tuple[bool, int, bool, float]:
        """The same for features, of which more is asked.

        Before the damage comes what is left within sentences, in steps of 0.25 (finer ones are noise): an edit can turn
        the answers of some sentences round and leave the others, which cancels over all prompts and removes nothing.
        A damage of exactly 0 is none that was measured: the features reach no token that counts of the text for
        choosing, and among equals in both any that do rank first.
        """
        fails, cost = self.cost()
        return fails, step_of(self.within), self.reached and self.damage == 0.0, cost


def step_of(within: float) -> int:
    """What is left within sentences, in steps of 0.25."""
    return int(within / 0.25)


class EditAtStrengths:
    """An edit, or several that are scaled together, on prompts for choosing.

    `scores` are those of every prompt at several strengths, `damage` (nats per token) that of the text at one.
    """

    def __init__(
        self,
        prompts: TwoClassPrompts,
        scores: Callable[[Sequence[float]], Float[Tensor, "strengths batch"]],
        damage: Callable[[float], float],
        share: float,
    ):
        self.prompts, self.scores, self.share = prompts, scores, share
        self._damage, self._costs = damage, {0.0: 0.0}
        self._areas: dict[float, float] = {}
        self._run([0.0])

    @cached_property
    def strength(self) -> float:
        """The least strength that removes the share; where none does, the one that removes most."""
        for strengths in (GRID[:4], GRID[4:]):  # what is wanted is the least that removes enough
            self._run(strengths)
            if any(self.removed(strength) >= self.share for strength in strengths):
                break
        for _ in range(REFINEMENTS):
            order = sorted(self._areas)
            areas = np.array([[self._areas[s]] for s in order])
            strength = round(float(strength_needed(np.array(order), areas, self.share)[0]), 4)
            if not np.isfinite(strength) or strength in self._areas:
                break
            self._run([strength])
        enough = [s for s in sorted(self._areas) if s and self.removed(s) >= self.share]
        return enough[0] if enough else max((s for s in self._areas if s), key=self.removed)

    @property
    def reached(self) -> bool:
        """Whether the share is removed at all."""
        return self.removed(self.strength) >= self.share

    def removed(self, strength: float) -> float:
        """The share of the capability that is removed at a strength which was run."""
        return 1 - abs(self._areas[strength] - 0.5) / max(abs(self._areas[0.0] - 0.5), 1e-9)

    @cached_property
    def within(self) -> float:
        """Capability left within single sentences at the strength."""
        return self._within(self.strength)

    def damage(self, strength: float) -> float:
        """Nats per token of text, run once for each strength."""
        if strength not in self._costs:
            self._costs[strength] = self._damage(strength)
        return self._costs[strength]

    def reach(self, budget: float = inf) -> Reach:
        """What the edit does, its strength lowered to the budget."""
        affordable, cost = affordable_share(lambda share: self.damage(share * self.strength), budget)
        if affordable == 1:
            cost = self.damage(self.strength)  # itself, and not the square of its root
            return Reach(self.strength, self.removed(self.strength), cost, self.reached, self.within)
        strength = round(self.strength * affordable, 4)
        self._run([strength])
        return Reach(strength, self.removed(strength), cost, False, self._within(strength))

    def _run(self, strengths: Sequence[float]) -> None:
        areas = aurocs(self.scores(strengths), self.prompts.positive).tolist()
        self._areas |= zip(strengths, areas, strict=True)

    def _within(self, strength: float) -> float:
        return left_within(self.prompts, self.scores([strength]).cpu()).item()


def best_edit(edits: Sequence[EditAtStrengths], budget: float, *, least: float) -> tuple[int, Reach] | None:
    """The number of the edit that ranks first among those that remove at least the share `least`, and its reach.

    None where there is none. The first `rank` of all reaches, found with fewer of them: an edit that reaches the share
    within the budget keeps its strength, so that only its damage is not known before the text is run; and one that
    does not ranks behind every one that does.
    """
    best: tuple[int, Reach] | None = None
    order = [i for i, edit in enumerate(edits) if edit.reached and edit.removed(edit.strength) >= least]
    for number in sorted(order, key=lambda i: step_of(edits[i].within)):
        edit = edits[number]
        if best and step_of(edit.within) > step_of(best[1].within):
            break
        if edit.damage(edit.strength) <= budget:
            reach = edit.reach(budget)
            if best is None or (reach.rank(), number) < (best[1].rank(), best[0]):
                best = number, reach
    if best:
        return best
    reaches = {i: edit.reach(budget) for i, edit in enumerate(edits)}
    usable = [i for i, reach in reaches.items() if reach.removed >= least]
    return min(((i, reaches[i]) for i in usable), key=lambda pair: pair[1].rank(), default=None)


def affordable_share(damage: Callable[[float], float], budget: float) -> tuple[float, float]:
    """The largest share of an edit, to a hundredth, whose damage is within the budget; and its damage.

    A damage grows with the square of a small edit, so that its root is nearly a straight line in the share.
    """
    share, root = largest_affordable(lambda share: sqrt(max(0.0, damage(share))), sqrt(budget))
    return share, root**2


def largest_affordable(cost: Callable[[float], float], most: float, *, within: float = 0.01) -> tuple[float, float]:
    """The largest share in [0, 1] whose cost is at most `most`, at most `within` too small; and its cost.

    The cost of 0 is taken to be 0. Invariant: cost(low) <= most < cost(high). A straight line between the two says
    where to look next, a little below where it meets `most`; scipy's root finders may end on either side of the root.
    """
    low, high, low_cost, high_cost = 0.0, 1.0, 0.0, cost(1.0)
    if high_cost <= most:
        return high, high_cost
    while high - low > within:
        margin = 0.1 * (high - low)
        guess = low + (high - low) * (most - low_cost) / (high_cost - low_cost) - within / 3
        share = min(max(guess, low + margin), high - margin)
        share_cost = cost(share)
        if share_cost > most:
            high, high_cost = share, share_cost
        else:
            low, low_cost = share, share_cost
    return low, low_cost
