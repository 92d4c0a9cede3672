"""The features that together suffice for a target, by pruning and exchange.

Recursion ablates one feature at a time and finds what a target depends on; where several features carry the same
information, none of them may show. Here everything but a circuit C is ablated at once, and C is chosen so that the
target's mean m(C) comes as near as it can to that of the whole model. With s_j the effect of a latent on the target to
first order in the run in which only C is left, where members have their activation and all others their ablated value,

    pruning    from all latents down to n, a fifth of C at a time: those with the smallest |s_j|
    re-ranking (optional) below some size, by what is lost with each member, m(C) - m(C without j), exactly
    exchange   the members with the smallest s_j leave, the others with the largest enter, as many at a time as bring
               m(C) nearer; fewer where it does not, until a single one does not; nothing where m(C) is beyond already

Sizes and not signs decide while C is large, since a single gradient misjudges what opposes the target where many blocks
write at once; signs decide at the end, where each step is checked by m(C) itself. (Iterative pruning by a first-order
estimate: Molchanov et al. 2017, of channels. Measured against each other in benchmarks/circuit_choice.py.) Cost: a
forward and a backward pass over the prompts per gradient; about log(latents / n) / log(1 / 0.8) cuts of
`len(shares)` gradients, and at most `exchanges` steps of a forward pass and, where one is taken, a gradient.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.effects.target_prompts import TargetPrompts
from circuits.scoring.ablations import AblatedValues, default_ablation
from circuits.scoring.attribution import attribution
from circuits.scoring.circuit_runs import CircuitRuns, Errors, Members, covered_sites, features_in, nearest_layers
from circuits.scoring.faithfulness import Scale
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Stages, silent
from sae_core.sites import FeatureId, Site

CUT = 0.2
"""Share of the remaining latents that one pass removes."""
ROUNDING = 1e-5
"""An effect below this share of the largest is a rounding error."""


@dataclass(frozen=True)
class Choice:
    """How members are chosen."""

    shares: tuple[float, ...] = (0.5, 1.0)
    """Of what is left of the members' activations, where gradients are taken while pruning."""
    signed: bool = False
    """Whether a cut removes what opposes the target first, and not what has the smallest effect."""
    exact_below: int = 0
    """With so many members or fewer they are ranked by ablating each."""
    exchanges: int = 40
    """Steps of the exchange at the end, at most."""


def prune_at(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    prompts: TargetPrompts,
    contexts: Int[Tensor, "contexts pos"],
    n: int,
    *,
    cover: int,
    ablation: AblatedValues | None = None,
    on_progress: OnProgress = silent,
) -> list[FeatureId]:
    """Up to `n` features at the `cover` layers nearest to the target that together carry it, most needed first.

    Everything else at their sites is ablated: by default to its value in the corrupted prompts where there are some, to
    its mean over `contexts` otherwise.
    """
    covered = {site: dictionaries[site] for site in nearest_layers(covered_sites(dictionaries, prompts.target), cover)}
    ablation = ablation or default_ablation(model, covered, prompts, contexts)
    return prune(CircuitRuns(model, covered, prompts.target, prompts.examples, ablation), n, on_progress)


def prune(
    runs: CircuitRuns, n: int, on_progress: OnProgress = silent, *, choice: Choice | None = None
) -> list[FeatureId]:
    """At most `n` features of the covered sites that together carry the target, most needed first.

    Where the target is lower in the whole model than with everything ablated, carrying it means lowering it. Fewer
    than `n` where fewer have an effect. Raises `UserError` where `n` < 1, no feature has
    one, or the target does not depend on what is ablated.
    """
    if n < 1:
        raise UserError(f"a circuit has at least one node; got {n}")
    search, stages = Search(runs, choice or Choice()), Stages(on_progress)
    members = torch.ones(len(search.names), dtype=torch.bool)
    effect = search.effects(members)
    smaller = search.cut(members, effect, n)
    # Invariant: `effect` belongs to `members`, on which the target still depends; `smaller` is the next circuit.
    while int(smaller.sum()) < int(members.sum()):
        if not smaller.any():
            raise UserError(
                f"no feature at {', '.join(map(str, runs.sites))} carries {runs.target.node} on these prompts "
                "once error terms are ablated; cover fewer sites, or give other prompts or dictionaries"
            )
        stages.begin(f"pruning: {int(smaller.sum())} features left")
        less = search.effects(smaller)
        if not less[smaller].any():  # the cut went too far: nothing reaches the target any more
            smaller = search.cut(members, effect, n, at_once=True)
            return [search.names[j] for j in _largest(effect, smaller, n)]
        members, effect = smaller, less
        smaller = search.cut(members, effect, n)
    if search.choice.exchanges:
        stages.begin(f"exchanging some of {int(members.sum())} features for others")
        members = search.exchanged(members, n)
        effect = search.effects(members)
    return [search.names[j] for j in _largest(effect, members, n)]


class Search:
    """Circuits as masks over the latents of all covered sites, in the order of `names`; effects signed so that what
    brings the target from m(nothing) towards the whole model's is positive."""

    def __init__(self, runs: CircuitRuns, choice: Choice):
        self.runs, self.choice = runs, choice
        self.names, self.scale = features_in(runs.everything()), Scale(runs)
        self.sign = -1 if self.scale.m_whole < self.scale.m_nothing else 1

    def members(self, mask: Bool[Tensor, "_"]) -> Members:
        sizes = [len(self.runs.dictionaries[site].directions) for site in self.runs.sites]
        parts = zip(self.runs.sites, mask.split(sizes), strict=True)
        return {site: tuple(part.nonzero()[:, 0].tolist()) for site, part in parts}

    def missing(self, mask: Bool[Tensor, "_"]) -> float:
        """How far the target is from the whole model's with the circuit alone."""
        return abs(self.runs.values([self.members(mask)], Errors.ABLATED).mean().item() - self.scale.m_whole)

    def effects(self, mask: Bool[Tensor, "_"]) -> Float[Tensor, "_"]:
        """Of all latents; of members alone where they are few enough to be ablated one by one."""
        members = self.members(mask)
        if int(mask.sum()) > self.choice.exact_below:
            return self.first_order(members, self.choice.shares)
        alone = self.runs.values([members], Errors.ABLATED)
        lost = (alone - self.runs.without_each(members, Errors.ABLATED)).mean(1).float()
        return torch.zeros(len(mask)).masked_scatter(mask, self.sign * lost)

    def first_order(self, members: Members, shares: Iterable[float]) -> Float[Tensor, "_"]:
        attributed = attribution(self.runs, members, shares=tuple(shares))
        return self.sign * torch.cat([attributed[site] for site in self.runs.sites])

    def cut(
        self, mask: Bool[Tensor, "_"], effect: Float[Tensor, "_"], n: int, *, at_once: bool = False
    ) -> Bool[Tensor, "_"]:
        """The members that one cut leaves: above `n` a fifth fewer, but `n` at least; none without an effect."""
        live = mask & (effect.abs() > ROUNDING * float(effect[mask].abs().max()))
        n_live = int(live.sum())
        wanted = min(n_live, n if at_once else max(n, int(n_live * (1 - CUT))))
        kept = torch.zeros_like(mask)
        kept[_largest(effect if self.choice.signed else effect.abs(), live, wanted)] = True
        return kept

    def exchanged(self, mask: Bool[Tensor, "_"], n: int) -> Bool[Tensor, "_"]:
        """The circuit after the exchange, of at most `n`."""
        missing, effect = self.missing(mask), self.first_order(self.members(mask), (1.0,))
        at_once = max(1, n // 4)
        for _ in range(self.choice.exchanges):
            leave = _largest(-effect, mask, min(at_once, int(mask.sum())))
            enter = _largest(effect, ~mask, min(at_once, n - int(mask.sum()) + len(leave)))
            other = mask.clone()
            other[leave], other[[j for j in enter if effect[j] > 0]] = False, True
            less = self.missing(other)
            if less < missing:
                mask, missing = other, less
                effect = self.first_order(self.members(mask), (1.0,))
            elif at_once == 1:
                break
            else:
                at_once //= 2
        return mask


def _largest(values: Float[Tensor, "_"], among: Bool[Tensor, "_"], n: int) -> list[int]:
    """The numbers of the `n` largest among some, the largest first."""
    places = among.nonzero()[:, 0]
    return places[values[places].argsort(descending=True, stable=True)[:n]].tolist()
