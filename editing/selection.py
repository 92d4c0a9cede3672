"""Which features to patch, in which order: four ways with one signature, each with its cost.

Every one gets the experiment on the *selection* prompts and returns all latents in the order in which to patch
them. Costs are counted in prompts run; a prompt on which a feature does not differ is never run for it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.tradeoff import KL, PatchExperiment
from sae_core.dictionaries import Dictionary
from sae_core.errors import UserError
from sae_core.seeds import generator_for


@dataclass(frozen=True)
class SelectionConfig:
    """How much to search."""

    n_greedy: int = 16
    """Features that the greedy search chooses."""
    shortlist: int = 32
    """The best by the first-order estimate, among which it searches."""
    n_thresholds: int = 50
    """Values of tau from 1e-5 to 1 nat, evenly spaced in their logarithm."""

    def __post_init__(self) -> None:
        for name in ("n_greedy", "shortlist", "n_thresholds"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative; got {getattr(self, name)}")


@dataclass(frozen=True)
class Selection:
    """All latents in the order in which to patch them."""

    order: tuple[int, ...]
    forwards: int
    """Prompts run to find it; a backward pass counts as one more."""
    counts: tuple[int, ...] | None = None
    """Sizes of the sets that the method itself proposes; None where every beginning of the order is one."""


Selector = Callable[..., Selection]


def attribution(
    experiment: PatchExperiment, dictionary: Dictionary, config: SelectionConfig, *, seed: int
) -> Selection:
    """By the first-order estimate of what each alone takes from the KL: one forward and one backward pass."""
    order = experiment.first_order(dictionary).argsort(descending=True, stable=True)
    return Selection(tuple(order.tolist()), 2 * len(experiment))


@torch.no_grad()
def greedy(experiment: PatchExperiment, dictionary: Dictionary, config: SelectionConfig, *, seed: int) -> Selection:
    """Exact search: the next feature is the one after which the KL is least.

    Among the `shortlist` best by the first-order estimate, and for the first `n_greedy`; the rest follow by estimate.
    """
    first = attribution(experiment, dictionary, config, seed=seed)
    moves = _Moves(experiment, dictionary)
    candidates = [j for j in first.order[: config.shortlist] if moves.differs[j]]
    change, readout = torch.zeros_like(experiment.x), experiment.corrupted
    chosen: list[int] = []
    forwards = first.forwards
    while candidates and len(chosen) < config.n_greedy:
        trials = [moves.prompts(j) for j in candidates]
        table = experiment.table(
            (rows, change[rows] + moves.of(j, rows)) for j, rows in zip(candidates, trials, strict=True)
        )
        table = torch.where(table.isnan(), readout, table)
        best = int(table[..., KL].mean(1).argmin())
        forwards += sum(map(len, trials))
        change[trials[best]] += moves.of(candidates[best], trials[best])
        readout = table[best]
        chosen.append(candidates.pop(best))
    return Selection((*chosen, *(j for j in first.order if j not in set(chosen))), forwards)


@torch.no_grad()
def threshold(experiment: PatchExperiment, dictionary: Dictionary, config: SelectionConfig, *, seed: int) -> Selection:
    """Pruning as in the source (after ACDC, Conmy et al. 2023): from all features down, over a rising threshold.

    For each tau the features still in F are walked in a random order, and one is dropped for good if the KL
    rises by less than tau without it. The sets left after each tau are the method's own.

    One walk's decisions depend on the ones before; here they are guessed (from what each feature was worth last
    time), the trials that follow from the guesses run in one pass, and what comes after a wrong guess runs again.
    A prompt on which nothing was dropped since is not run again either. The result is that of the walk one at a time.
    """
    walk = _Walk(experiment, dictionary)
    worth = experiment.first_order(dictionary).tolist()
    sizes = [len(walk.kept)]
    for number, tau in enumerate(torch.logspace(-5, 0, config.n_thresholds).tolist()):
        shuffled = torch.randperm(len(walk.kept), generator=generator_for(seed, "walk", number)).tolist()
        walk.drop_below(tau, [walk.kept[i] for i in shuffled], worth)
        sizes.append(len(walk.kept))
    left = sorted(walk.kept, key=lambda j: -worth[j])
    order = (*left, *reversed(walk.dropped), *walk.never)
    counts = tuple(sorted({0, *sizes, len(order)}))
    return Selection(order, 2 * len(experiment) + walk.forwards, counts)


def random(experiment: PatchExperiment, dictionary: Dictionary, config: SelectionConfig, *, seed: int) -> Selection:
    """In random order, those first that differ on the prompts: the control for all the others."""
    differs = experiment.differences(dictionary).ne(0).flatten(0, 1).any(0).cpu()
    shuffled = torch.randperm(len(differs), generator=generator_for(seed, "random subsets"))
    return Selection(tuple(torch.cat([shuffled[differs[shuffled]], shuffled[~differs[shuffled]]]).tolist()), 0)


SELECTORS: dict[str, Selector] = {
    "greedy": greedy,
    "attribution": attribution,
    "threshold": threshold,
    "random": random,
}


class _Moves:
    """What each latent's patch adds to the activation."""

    def __init__(self, experiment: PatchExperiment, dictionary: Dictionary):
        self.differences, self.directions = experiment.differences(dictionary), dictionary.directions
        self.where: Bool[Tensor, "batch n_latents"] = self.differences.ne(0).any(1)
        self.differs: list[bool] = self.where.any(0).tolist()

    def prompts(self, latent: int) -> Int[Tensor, "_"]:
        """The prompts on which it differs."""
        return self.where[:, latent].nonzero()[:, 0]

    def of(self, latent: int, prompts: Int[Tensor, "rows"]) -> Float[Tensor, "rows pos d"]:
        """(c - c_bar) f."""
        return self.differences[prompts][..., latent, None] * self.directions[latent]


class _Walk:
    """A set of features that shrinks, with the run that has them patched.

    What a prompt's KL is without a feature is kept until a feature that differs on this prompt is dropped.
    """

    AT_MOST = 64  # trials per pass: further ahead a guess is rarely right

    def __init__(self, experiment: PatchExperiment, dictionary: Dictionary):
        self.experiment, self.moves = experiment, _Moves(experiment, dictionary)
        self.kept = [j for j, differs in enumerate(self.moves.differs) if differs]
        self.never = [j for j, differs in enumerate(self.moves.differs) if not differs]
        self.dropped: list[int] = []
        self.change = self.moves.differences @ self.moves.directions
        everyone = torch.arange(len(experiment), device=self.change.device)
        self.kl = experiment.table([(everyone, self.change)])[0, :, KL]
        self.without = self.kl.repeat(len(self.moves.differs), 1)
        self.version = torch.zeros_like(everyone)
        """How many features were gone when a prompt last changed."""
        self.seen = torch.full(self.without.shape, -1, device=everyone.device)
        """The version that `without` is of."""
        self.forwards, self.ahead = len(experiment), 8

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
        table = self.experiment.table(self._trials(part, guesses))[..., KL]
        self.forwards += int((~table.isnan()).sum())
        for number, (latent, guess) in enumerate(zip(part, guesses, strict=True), 1):
            found, differs = table[number - 1], self.moves.where[:, latent]
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
        rows = self.moves.prompts(latent)
        self.change[rows] -= self.moves.of(latent, rows)
        self.kl = self.without[latent].clone()
        self.dropped.append(latent)
        self.kept.remove(latent)
        self.version[rows] = len(self.dropped)

    def _trials(self, part: Sequence[int], guesses: Sequence[bool]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each latent's drop after those drops before it that are guessed, on the prompts that have changed."""
        change, version, n_gone = self.change.clone(), self.version.clone(), len(self.dropped)
        for latent, guess in zip(part, guesses, strict=True):
            rows = self.moves.prompts(latent)
            new = rows[self.seen[latent, rows] != version[rows]]
            yield new, change[new] - self.moves.of(latent, new)
            if guess:
                n_gone += 1
                change[rows] -= self.moves.of(latent, rows)
                version[rows] = n_gone
