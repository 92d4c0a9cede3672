"""Iterative pruning to a sufficient feature set.

Recursion ablates one feature at a time and finds what a target depends on; where several features carry the same
information, none of them may show. Here everything but a circuit is ablated at once. Starting from all latents, each
pass removes the share of them whose loss costs the target least to first order, in the run in which only the
remaining ones are left. (Iterative pruning by a first-order estimate, as of channels in Molchanov et al. 2017; here
of features, and signed: what opposes the target is removed like what it does not need.) Cost: one forward and one
backward pass over the prompts per cut and gradient, about log(latents / n) / log(1 / 0.8) cuts.
"""

from collections.abc import Iterable, Mapping

from jaxtyping import Int
from torch import Tensor

from circuits.effects.target_prompts import TargetPrompts
from circuits.scoring.ablations import default_ablation
from circuits.scoring.attribution import attribution
from circuits.scoring.circuit_runs import CircuitRuns, Errors, covered_sites, features_in, members_of, nearest_layers
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, Stages, silent
from sae_core.sites import FeatureId, Site, Stream

CUT = 0.2
"""Share of the remaining latents that one pass removes."""
GRADIENTS = 4
"""Where members are written by many blocks at once, a single gradient misjudges what opposes the target: its first cut
left IOI on storybook at 14% of what the model does, of 83% before; with four it left 91% (benchmarks/RESULTS.md)."""
ROUNDING = 1e-5
"""A support below this share of the largest is a rounding error."""


def prune_at(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    prompts: TargetPrompts,
    contexts: Int[Tensor, "contexts pos"],
    n: int,
    *,
    cover: int,
    on_progress: OnProgress = silent,
) -> list[FeatureId]:
    """Up to `n` features at the `cover` layers nearest to the target that together carry it, most needed first.

    Everything else at their sites is ablated: to its value in the corrupted prompts where there are some, to its
    mean over `contexts` otherwise.
    """
    covered = {site: dictionaries[site] for site in nearest_layers(covered_sites(dictionaries, prompts.target), cover)}
    ablation = default_ablation(model, covered, prompts, contexts)
    return prune(CircuitRuns(model, covered, prompts.target, prompts.examples, ablation), n, on_progress)


def prune(
    runs: CircuitRuns, n: int, on_progress: OnProgress = silent, *, gradients: int | None = None
) -> list[FeatureId]:
    """At most `n` features of the covered sites that together carry the target, most needed first.

    Where the target is lower in the whole model than with everything ablated, carrying it means lowering it. Fewer
    than `n` where fewer support it. Gradients are taken at so many shares of what is left, by default at 1, over what
    blocks write at `GRADIENTS`. Raises `UserError` where `n` < 1, or no feature supports the target.
    """
    if n < 1:
        raise UserError(f"a circuit has at least one node; got {n}")
    gradients = gradients or (1 if runs.sites[0].stream is Stream.RESID_POST else GRADIENTS)
    lowered = runs.whole.double().mean() < runs.values([{}], Errors.ABLATED).mean()
    sign, stages = -1 if lowered else 1, Stages(on_progress)
    support = _support(runs, features_in(runs.everything()), sign, gradients)
    kept = _kept(support, n)
    # Invariant: `support` belongs to a circuit on which the target still depends, `kept` is the next, smaller one.
    # Every pass removes at least one member, so the loop ends: at the latest where no member can be missed.
    while len(kept) < len(support):
        if not kept:
            raise UserError(
                f"no feature at {', '.join(map(str, runs.sites))} carries {runs.target.node} on these prompts "
                "once error terms are ablated; cover fewer sites, or give other prompts or dictionaries"
            )
        stages.begin(f"pruning: {len(kept)} features left")
        smaller = _support(runs, kept, sign, gradients)
        if not any(smaller.values()):  # the cut went too far: nothing reaches the target any more
            return _ranked(support)[:n]
        support = smaller
        kept = _kept(support, n)
    return _ranked(support)


def _support(runs: CircuitRuns, members: Iterable[FeatureId], sign: int, gradients: int) -> dict[FeatureId, float]:
    """What the target loses with each member, by gradients in the run in which only `members` are left."""
    circuit = members_of(members, runs.sites)
    attributions = attribution(runs, circuit, shares=[(step + 1) / gradients for step in range(gradients)])
    return {f: sign * float(attributions[f.site][f.index]) for f in features_in(circuit)}


def _kept(support: dict[FeatureId, float], n: int) -> list[FeatureId]:
    """The members that one cut leaves: above `n` the best 80% of them, but `n` at least; then all with support."""
    ranked = _ranked(support)
    if len(ranked) > n and any(support.values()):
        return [f for f in ranked[: max(n, int(len(ranked) * (1 - CUT)))] if support[f] != 0]
    least = ROUNDING * max([0.0, *support.values()])
    return [feature for feature in ranked if support[feature] > least]


def _ranked(support: dict[FeatureId, float]) -> list[FeatureId]:
    """The largest support first."""
    return sorted(support, key=lambda feature: -support[feature])
