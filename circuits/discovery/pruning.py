"""The few features that are enough: what is left when all that a target hardly needs is taken away.

Discovery ablates one feature at a time, and finds what a target depends on; where several features carry the
same, none of them may show. Here everything but a circuit is ablated at once. From all latents those are taken
away, a share at a time, whose loss costs the target least to first order, in the run in which only the others
are left; the rest decides again. (Iterative pruning by a first-order estimate, as of channels in Molchanov et al.
2017; here of features, and signed.) What opposes the target is taken away like what it does not need: the
circuit is what carries the target.
"""

from jaxtyping import Int
from torch import Tensor

from circuits.discovery.recursive import Discovery
from circuits.effects.targets import Target
from circuits.features.atlas import Examples
from circuits.scoring.ablations import usual
from circuits.scoring.circuit_runs import Errors, Trial, covered_sites, features_in
from circuits.scoring.controls import attribution
from sae_core.errors import UserError
from sae_core.sites import FeatureId

SHARE = 0.2
"""Of the latents that are left, taken away between two looks."""
NOTHING = 1e-5
"""A support below this share of the largest is rounding."""


def sufficient_at(
    search: Discovery,
    target: Target,
    examples: Examples,
    contexts: Int[Tensor, "contexts pos"],
    n: int,
    *,
    cover: int,
    corrupted: Int[Tensor, "examples pos"] | None = None,
) -> list[FeatureId]:
    """Up to `n` features at the `cover` sites nearest to the target that together carry it.

    Everything else at these sites is ablated: to what it is in the `corrupted` prompts, if the examples have
    such counterparts, to its mean over `contexts` otherwise.
    """
    sites = covered_sites(search.dictionaries, target)[-cover:]
    covered = {site: search.dictionaries[site] for site in sites}
    ablation = usual(search.model, covered, examples, contexts, corrupted)
    return sufficient(Trial(search.model, covered, target, examples, ablation), n)


def sufficient(trial: Trial, n: int) -> list[FeatureId]:
    """At most `n` features of the covered sites that together carry the target, those that it needs most first.

    To carry a target that is lower in the model than with everything ablated is to lower it. Fewer than `n` where
    fewer support it. Raises `UserError` where `n` is no number of features, or no feature supports the target.
    """
    if n < 1:
        raise UserError(f"a circuit has at least one node; got {n}")
    lowered = trial.whole.double().mean() < trial.values([{}], Errors.ABLATED).mean()
    members, last = trial.everything(), []
    while True:
        support = attribution(trial, members)
        worth = {f: (-1 if lowered else 1) * float(support[f.site][f.index]) for f in features_in(members)}
        ranked = sorted(worth, key=lambda feature: -worth[feature])
        if not any(worth.values()) and last:  # the last cut went too far: the target reads nothing any more
            return last[:n]
        least = NOTHING * max([0.0, *worth.values()])
        if len(ranked) > n and any(worth.values()):
            left = [f for f in ranked[: max(n, int(len(ranked) * (1 - SHARE)))] if worth[f] != 0]
        else:
            left = [feature for feature in ranked if worth[feature] > least]
            if not left:
                raise UserError(
                    f"no feature at {', '.join(map(str, trial.sites))} carries {trial.target.node} on these prompts "
                    "once error terms are ablated; cover fewer sites, or give other prompts or dictionaries"
                )
            if len(left) == len(ranked):
                return ranked
        members, last = {site: tuple(sorted(f.index for f in left if f.site == site)) for site in trial.sites}, ranked
