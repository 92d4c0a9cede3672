"""Which features to patch, in which order: four ways with one signature, each with its cost.

Every one gets the features on the *selection* prompts and returns all of them in the order in which to patch
them: what carries the behaviour in general. Costs are counted in prompts run; a prompt on which a feature does not
differ is never run for it. `orders_of_pairs` answers another question: what carries it in one pair of prompts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Int
from torch import Tensor

from editing.ioi.feature_sets import Patching, SetOnPrompts
from sae_core.errors import UserError
from sae_core.seeds import generator_for


class Selector(StrEnum):
    """A way to choose features."""

    ATTRIBUTION = "attribution"
    GREEDY = "greedy"
    THRESHOLD = "threshold"
    RANDOM = "random"


PER_PAIR = "each pair itself"
"""The name of the way in which every pair of prompts has an order of its own."""


@dataclass(frozen=True)
class SelectionConfig:
    """How much to search."""

    n_greedy: int = 16
    """Features that the greedy search chooses."""
    shortlist: int = 32
    """The best by the first-order estimate, among which it searches."""
    n_thresholds: int = 16
    """Values of tau from 1e-5 to 1 nat, evenly spaced in their logarithm; the source took 50."""

    def __post_init__(self) -> None:
        for name in ("n_greedy", "shortlist", "n_thresholds"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative; got {getattr(self, name)}")


@dataclass(frozen=True)
class Selection:
    """All features in the order in which to patch them."""

    order: tuple[int, ...]
    forwards: int
    """Prompts run to find it; a backward pass counts as one more."""
    counts: tuple[int, ...] | None = None
    """Sizes of the sets that the method itself proposes; None where every beginning of the order is one."""


def attribution(patching: Patching, config: SelectionConfig, *, seed: int) -> Selection:
    """By the first-order estimate of what each alone takes from the KL: one forward and one backward pass."""
    order = patching.first_order().argsort(descending=True, stable=True)
    return Selection(tuple(order.tolist()), 2 * len(patching.differs))


def orders_of_pairs(patching: Patching) -> Int[Tensor, "batch n_features"]:
    """For each pair of prompts its own order of all features, by the first-order estimate on the pair itself."""
    return patching.estimates().argsort(descending=True, stable=True, dim=-1)


@torch.no_grad()
def greedy(patching: Patching, config: SelectionConfig, *, seed: int) -> Selection:
    """Exact search: the next feature is the one after which the KL is least.

    Among the `shortlist` best by the first-order estimate, and for the first `n_greedy`; the rest follow by estimate.
    """
    by_estimate = attribution(patching, config, seed=seed)
    candidates = [j for j in by_estimate.order[: config.shortlist] if patching.differs[:, j].any()]
    sets, kl = patching.empty_sets(len(patching.differs)), patching.corrupted.kl
    chosen: list[int] = []
    forwards = by_estimate.forwards
    while candidates and len(chosen) < config.n_greedy:
        prompts = [patching.differs[:, j].nonzero()[:, 0] for j in candidates]
        trials = patching.table(
            (rows, sets[rows] + patching.contribution(j, rows)) for j, rows in zip(candidates, prompts, strict=True)
        )
        kl_with = torch.where(trials.kl.isnan(), kl, trials.kl)  # [candidates, batch]; as before where not run
        best = int(kl_with.mean(1).argmin())
        forwards += sum(map(len, prompts))
        sets[prompts[best]] += patching.contribution(candidates[best], prompts[best])
        kl = kl_with[best]
        chosen.append(candidates.pop(best))
    taken = set(chosen)
    return Selection((*chosen, *(j for j in by_estimate.order if j not in taken)), forwards)


@torch.no_grad()
def threshold(patching: Patching, config: SelectionConfig, *, seed: int) -> Selection:
    """Pruning as in the source (after ACDC, Conmy et al. 2023): from all features down, over a rising threshold.

    For each tau the features still in F are walked in a random order, and one is dropped for good if the KL
    rises by less than tau without it. The sets left after each tau are the method's own. Many decisions share a
    forward pass (`_Walk`); the result is that of the walk one at a time.
    """
    walk = _Walk(patching)
    sizes = [len(walk.kept)]
    for number, tau in enumerate(torch.logspace(-5, 0, config.n_thresholds).tolist()):
        shuffled = torch.randperm(len(walk.kept), generator=generator_for(seed, "walk", number)).tolist()
        walk.drop_below(tau, [walk.kept[i] for i in shuffled])
        sizes.append(len(walk.kept))
    best_first = sorted(walk.kept, key=lambda j: -walk.rise[j])
    order = (*best_first, *reversed(walk.dropped), *walk.never)
    counts = tuple(sorted({0, *sizes, len(order)}))
    return Selection(order, 2 * len(patching.differs) + walk.forwards, counts)


def random(patching: Patching, config: SelectionConfig, *, seed: int) -> Selection:
    """In random order, those first that differ on the prompts: the control for all the others."""
    differs = patching.differs.any(0).cpu()
    shuffled = torch.randperm(len(differs), generator=generator_for(seed, "random subsets"))
    return Selection(tuple(torch.cat([shuffled[differs[shuffled]], shuffled[~differs[shuffled]]]).tolist()), 0)


SELECTORS: dict[Selector, Callable[..., Selection]] = {
    Selector.ATTRIBUTION: attribution,
    Selector.GREEDY: greedy,
    Selector.THRESHOLD: threshold,
    Selector.RANDOM: random,
}


class _Walk:
    """The set F as the threshold pruning shrinks it: decided feature by feature, run many features at a time.

    Invariant, true before and after every decision, for every prompt b and feature j of F:

        sets[b]        is F on prompt b, and kl[b] the KL of prompt b with F patched
        kl_without[j, b]   is that KL with F minus j patched, wherever measured_at[j, b] == changed_at[b]

    Dropping j changes nothing on prompts where j does not differ, so their measurements stay good.

    Speculation. The next decisions are predicted (j drops if `rise[j]`, the rise of the KL when it was last measured,
    is below tau), and the trials of several features run in one pass, each without the features before it that
    are predicted to drop. Decisions are then made in turn, and the first one that differs from its prediction
    ends the batch: what was run after it is thrown away. So every trial that decides ran on exactly the set that the
    walk one at a time would have had, and every decision is the same.
    """

    MOST_AHEAD = 64  # further ahead a prediction is rarely right

    def __init__(self, patching: Patching):
        self.patching, self.differs = patching, patching.differs
        n_prompts, device = len(self.differs), self.differs.device
        everywhere = self.differs.any(0).tolist()
        self.kept = [j for j, differs in enumerate(everywhere) if differs]
        self.never = [j for j, differs in enumerate(everywhere) if not differs]
        """Features that differ on no prompt: outside F from the beginning."""
        self.dropped: list[int] = []
        """In the order in which they were dropped."""
        prompts = torch.arange(n_prompts, device=device)
        self.sets = patching.contributions(torch.tensor(self.kept, device=device), prompts)
        self.kl = patching.table([(prompts, self.sets)]).kl[0]
        self.kl_without = self.kl.repeat(len(everywhere), 1)
        self.changed_at = torch.zeros_like(prompts)
        """Features dropped when a prompt last changed, that change included."""
        self.measured_at = torch.full(self.kl_without.shape, -1, device=device)
        """`changed_at` of the prompt when `kl_without` was measured."""
        self.rise: list[float] = patching.first_order().tolist()
        """Mean rise of the KL without each feature, as last measured; before that, the first-order estimate."""
        self.forwards, self._ahead = n_prompts, 8

    def drop_below(self, tau: float, queue: Sequence[int]) -> None:
        """Decide on every feature of the queue in turn: it is dropped if the KL rises by less than tau without it."""
        while queue:
            batch = queue[: self._ahead]
            n_decided = self._decide(tau, batch)
            queue = queue[n_decided:]
            right = n_decided == len(batch)
            self._ahead = min(2 * self._ahead, self.MOST_AHEAD) if right else max(2, self._ahead // 2)

    def _decide(self, tau: float, batch: Sequence[int]) -> int:
        """Decide in turn, up to and including the first feature that was predicted wrongly; how many."""
        predictions = [self.rise[j] < tau for j in batch]
        trials = self.patching.table(self._trials(batch, predictions)).kl  # [features of the batch, prompts]
        self.forwards += int((~trials.isnan()).sum())
        for number, (j, prediction) in enumerate(zip(batch, predictions, strict=True), 1):
            trial = trials[number - 1]
            not_run = torch.where(self.differs[:, j], self.kl_without[j], self.kl)
            self.kl_without[j] = torch.where(trial.isnan(), not_run, trial)
            self.measured_at[j] = self.changed_at
            self.rise[j] = (self.kl_without[j] - self.kl).mean().item()
            drops = self.rise[j] < tau
            if drops:
                self._drop(j)
            if drops != prediction:
                return number
        return len(batch)

    def _drop(self, j: int) -> None:
        prompts = self._prompts(j)
        self.sets[prompts] -= self.patching.contribution(j, prompts)
        self.kl = self.kl_without[j].clone()
        self.dropped.append(j)
        self.kept.remove(j)
        self.changed_at[prompts] = len(self.dropped)

    def _prompts(self, j: int) -> Tensor:
        """The prompts on which it differs."""
        return self.differs[:, j].nonzero()[:, 0]

    def _trials(self, batch: Sequence[int], predictions: Sequence[bool]) -> Iterator[SetOnPrompts]:
        """F without each feature and without those before it that are predicted to drop, on prompts not yet measured.

        `sets`, `changed_at` and `n_dropped` go through what `_drop` will do to the walk if the predictions are right.
        """
        sets, changed_at, n_dropped = self.sets.clone(), self.changed_at.clone(), len(self.dropped)
        for j, prediction in zip(batch, predictions, strict=True):
            prompts = self._prompts(j)
            stale = prompts[self.measured_at[j, prompts] != changed_at[prompts]]
            yield stale, sets[stale] - self.patching.contribution(j, stale)
            if prediction:
                n_dropped += 1
                sets[prompts] -= self.patching.contribution(j, prompts)
                changed_at[prompts] = n_dropped
