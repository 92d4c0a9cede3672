"""Which features to patch, in which order: four ways with one signature, each with its cost.

Every one gets the features on the *selection* prompts and returns all of them in the order in which to patch
them. Costs are counted in prompts run; a prompt on which a feature does not differ is never run for it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from editing.ioi.feature_sets import KL, Patching, Trial
from sae_core.errors import UserError
from sae_core.seeds import generator_for


class Selector(StrEnum):
    """A way to choose features."""

    GREEDY = "greedy"
    ATTRIBUTION = "attribution"
    THRESHOLD = "threshold"
    RANDOM = "random"


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
    return Selection(tuple(order.tolist()), 2 * len(patching.corrupted))


@torch.no_grad()
def greedy(patching: Patching, config: SelectionConfig, *, seed: int) -> Selection:
    """Exact search: the next feature is the one after which the KL is least.

    Among the `shortlist` best by the first-order estimate, and for the first `n_greedy`; the rest follow by estimate.
    """
    first = attribution(patching, config, seed=seed)
    candidates = [j for j in first.order[: config.shortlist] if patching.differs[:, j].any()]
    sets, readout = patching.none(), patching.corrupted
    chosen: list[int] = []
    forwards = first.forwards
    while candidates and len(chosen) < config.n_greedy:
        prompts = [patching.differs[:, j].nonzero()[:, 0] for j in candidates]
        table = patching.table(
            (rows, sets[rows] + patching.of(j, rows)) for j, rows in zip(candidates, prompts, strict=True)
        )
        table = torch.where(table.isnan(), readout, table)
        best = int(table[..., KL].mean(1).argmin())
        forwards += sum(map(len, prompts))
        sets[prompts[best]] += patching.of(candidates[best], prompts[best])
        readout = table[best]
        chosen.append(candidates.pop(best))
    taken = set(chosen)
    return Selection((*chosen, *(j for j in first.order if j not in taken)), forwards)


@torch.no_grad()
def threshold(patching: Patching, config: SelectionConfig, *, seed: int) -> Selection:
    """Pruning as in the source (after ACDC, Conmy et al. 2023): from all features down, over a rising threshold.

    For each tau the features still in F are walked in a random order, and one is dropped for good if the KL
    rises by less than tau without it. The sets left after each tau are the method's own.

    One walk's decisions depend on the ones before; here they are guessed (from what each feature was worth last
    time), the trials that follow from the guesses run in one pass, and what comes after a wrong guess runs again.
    A prompt on which nothing was dropped since is not run again either. The result is that of the walk one at a time.
    """
    walk = _Walk(patching)
    worth = patching.first_order().tolist()
    sizes = [len(walk.kept)]
    for number, tau in enumerate(torch.logspace(-5, 0, config.n_thresholds).tolist()):
        shuffled = torch.randperm(len(walk.kept), generator=generator_for(seed, "walk", number)).tolist()
        walk.drop_below(tau, [walk.kept[i] for i in shuffled], worth)
        sizes.append(len(walk.kept))
    left = sorted(walk.kept, key=lambda j: -worth[j])
    order = (*left, *reversed(walk.dropped), *walk.never)
    counts = tuple(sorted({0, *sizes, len(order)}))
    return Selection(order, 2 * len(patching.corrupted) + walk.forwards, counts)


def random(patching: Patching, config: SelectionConfig, *, seed: int) -> Selection:
    """In random order, those first that differ on the prompts: the control for all the others."""
    differs = patching.differs.any(0).cpu()
    shuffled = torch.randperm(len(differs), generator=generator_for(seed, "random subsets"))
    return Selection(tuple(torch.cat([shuffled[differs[shuffled]], shuffled[~differs[shuffled]]]).tolist()), 0)


SELECTORS: dict[Selector, Callable[..., Selection]] = {
    Selector.GREEDY: greedy,
    Selector.ATTRIBUTION: attribution,
    Selector.THRESHOLD: threshold,
    Selector.RANDOM: random,
}


class _Walk:
    """A set of features that shrinks, with the run that has them patched.

    What a prompt's KL is without a feature is kept until a feature that differs on this prompt is dropped.
    """

    AT_MOST = 64  # trials per pass: further ahead a guess is rarely right

    def __init__(self, patching: Patching):
        self.patching, self.differs = patching, patching.differs
        anywhere = self.differs.any(0).tolist()
        self.kept = [j for j, differs in enumerate(anywhere) if differs]
        self.never = [j for j, differs in enumerate(anywhere) if not differs]
        self.dropped: list[int] = []
        everyone = torch.arange(len(patching.corrupted), device=self.differs.device)
        self.sets = patching.several(torch.tensor(self.kept, device=everyone.device), everyone)
        self.kl = patching.table([(everyone, self.sets)])[0, :, KL]
        self.without = self.kl.repeat(len(anywhere), 1)
        self.version = torch.zeros_like(everyone)
        """How many features were gone when a prompt last changed."""
        self.seen = torch.full(self.without.shape, -1, device=everyone.device)
        """The version that `without` is of."""
        self.forwards, self.ahead = len(everyone), 8

    def drop_below(self, tau: float, queue: Sequence[int], worth: list[float]) -> None:
        """One walk; `worth` is what each latent's drop is guessed to cost, and learns what it did cost."""
        while queue:
            part = queue[: self.ahead]
            done = self._decide(tau, part, worth)
            queue = queue[done:]
            self.ahead = min(2 * self.ahead, self.AT_MOST) if done == len(part) else max(2, self.ahead // 2)

    def _decide(self, tau: float, part: Sequence[int], worth: list[float]) -> int:
        """Decide on latents in turn, up to and including the first whose fate was guessed wrong; how many."""
        guesses = [worth[j] < tau for j in part]
        table = self.patching.table(self._trials(part, guesses))[..., KL]
        self.forwards += int((~table.isnan()).sum())
        for number, (latent, guess) in enumerate(zip(part, guesses, strict=True), 1):
            found, differs = table[number - 1], self.differs[:, latent]
            self.without[latent] = torch.where(
                found.isnan(), torch.where(differs, self.without[latent], self.kl), found
            )
            self.seen[latent] = self.version
            worth[latent] = (self.without[latent] - self.kl).mean().item()
            drops = worth[latent] < tau
            if drops:
                self._drop(latent)
            if drops != guess:
                break
        return number

    def _drop(self, latent: int) -> None:
        rows = self._rows(latent)
        self.sets[rows] -= self.patching.of(latent, rows)
        self.kl = self.without[latent].clone()
        self.dropped.append(latent)
        self.kept.remove(latent)
        self.version[rows] = len(self.dropped)

    def _rows(self, latent: int) -> Tensor:
        return self.differs[:, latent].nonzero()[:, 0]

    def _trials(self, part: Sequence[int], guesses: Sequence[bool]) -> Iterator[Trial]:
        """Each latent's drop after those drops before it that are guessed, on the prompts that have changed."""
        sets, version, n_gone = self.sets.clone(), self.version.clone(), len(self.dropped)
        for latent, guess in zip(part, guesses, strict=True):
            rows = self._rows(latent)
            new = rows[self.seen[latent, rows] != version[rows]]
            yield new, sets[new] - self.patching.of(latent, new)
            if guess:
                n_gone += 1
                sets[rows] -= self.patching.of(latent, rows)
                version[rows] = n_gone
