"""What any edit of that size does: random features and random directions at the size of the chosen edit."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from editing.interventions.compose import Scaled
from editing.interventions.patch import ablate
from editing.removal.cached_runs import Elsewhere, Harm, Runs, changes
from editing.removal.evaluation import Judged, Method, Removal
from editing.removal.feature_search import like_density, random_projection
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.estimate import Estimate
from sae_core.model.language_model import Intervention
from sae_core.seeds import generator_for
from sae_core.sites import Site


def random_edits(
    site: Site, dictionary: Dictionary, chosen: list[int], choosing: Elsewhere, *, seed: int, draw: int = 0
) -> dict[Method, Intervention]:
    """The ablation of random features of like density, and the projection of as many random directions.

    Densities and means are those of the text for choosing.
    """
    runs = choosing.runs
    x, k = runs.at(site)[0], min(len(chosen), runs.model.d_in(site))
    own = generator_for(seed, "random features", draw), generator_for(seed, "random directions", draw)
    latents = like_density(dictionary, x, runs.mask, chosen, generator=own[0])
    return {
        Method.RANDOM_FEATURES: ablate(site, dictionary, latents),
        Method.RANDOM_DIRECTIONS: random_projection(site, x[runs.mask], k, generator=own[1]),
    }


def at_size(edits: Sequence[Intervention], sizes: Sequence[float], runs: Runs) -> list[Scaled]:
    """Edits of the residual from a lower layer to a higher one, each scaled so that it moves the tokens by its size.

    Sizes are means of |x' - x| in the run that has all of them: each edit is measured on what those below it leave.
    """
    found: list[Scaled] = []
    for edit, size in zip(edits, sizes, strict=True):
        h = runs.model.resume(h, found[-1].site.layer, [edit.site])[edit.site] if found else runs.at(edit.site)[0]
        change = changes(edit, h, runs.mask)
        found.append(Scaled(edit, size / max(runs.size(change.norm(dim=-1)), 1e-9)))
        h = h + found[-1].strength * change
    return found


def mean_of(judged: Sequence[Judged]) -> Judged:
    """The mean over random draws, each of which is kept in `draws`; intervals run from the lowest end to the highest.

    AUROCs on either side of 0.5 average to 0.5: the capability counts as gone where each draw removes it.
    """
    if len(judged) == 1:
        removal, harm = judged[0]
        return replace(removal, features=()), harm
    removals, harms = [removal for removal, _ in judged], [harm for _, harm in judged]
    first = removals[0]
    means: dict[str, Any] = {}
    for field in fields(Removal):
        values = [getattr(removal, field.name) for removal in removals]
        if isinstance(values[0], float):
            means[field.name] = _mean(values)
        elif isinstance(values[0], Estimate):
            means[field.name] = _mean_estimate(values)
    transfer = {name: _mean_estimate([removal.transfer[name] for removal in removals]) for name in first.transfer}
    draws = tuple(removal.auroc.value for removal in removals)
    removal = replace(first, **means, transfer=transfer, features=(), draws=draws)
    harm = Harm(
        kl=_mean_estimate([harm.kl for harm in harms]),
        rise=_mean_estimate([harm.rise for harm in harms]),
        edit_size=_mean([one.edit_size for one in harms]),
        contexts=tuple(map(_mean, zip(*(one.contexts for one in harms), strict=True))),
        counts=harms[0].counts,
    )
    return removal, harm


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_estimate(draws: Sequence[Estimate]) -> Estimate:
    """The mean, from the lowest end to the highest."""
    return Estimate(_mean([e.value for e in draws]), min(e.low for e in draws), max(e.high for e in draws))
