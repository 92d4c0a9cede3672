"""What any edit of that size does: random features and random directions at the size of the chosen edit."""

from collections.abc import Sequence
from dataclasses import replace

from editing.candidates import like_density, random_directions
from editing.ground import Elsewhere, Harm
from editing.judging import Removal
from editing.patch import ablate
from editing.scaled import Scaled
from sae_core.dictionaries import Dictionary
from sae_core.seeds import generator_for
from sae_core.sites import Site


def equal_random(
    site: Site,
    dictionary: Dictionary,
    chosen: list[int],
    size: float,
    choosing: Elsewhere,
    tested: Elsewhere,
    draws: int,
    seed: int,
) -> dict[str, list[Scaled]]:
    """`draws` edits each of random features of like density and of as many random directions.

    Densities and means are those of the text for choosing; each edit is scaled to the mean size `size` on the
    test text.
    """
    x = choosing.runs.at(site)[0][choosing.runs.mask]
    found: dict[str, list[Scaled]] = {"random features": [], "random directions": []}
    for draw in range(draws):
        latents = like_density(dictionary, x, chosen, generator=generator_for(seed, "random features", draw))
        k = min(len(chosen), x.shape[-1])
        directions = random_directions(site, x, k, generator=generator_for(seed, "random directions", draw))
        for name, edit in (("random features", ablate(site, dictionary, latents)), ("random directions", directions)):
            own_size = tested.runs.edited([edit])[2]
            found[name].append(Scaled(edit, size / max(own_size, 1e-9)))
    return found


def mean_of(judged: Sequence[tuple[Removal, Harm]]) -> tuple[Removal, Harm]:
    """The mean over draws; its intervals run from the lowest end of any draw to the highest."""
    removals = [removal for removal, _ in judged]
    first = removals[0]
    numbers = {
        name: sum(getattr(one, name) for one in removals) / len(removals)
        for name, value in vars(first).items()
        if isinstance(value, float)
    }
    spans = {
        name: (min(one.intervals[name][0] for one in removals), max(one.intervals[name][1] for one in removals))
        for name in first.intervals
    }
    return replace(first, **numbers, features=(), intervals=spans), judged[0][1]
