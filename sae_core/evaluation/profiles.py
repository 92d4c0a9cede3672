"""What dictionaries are worth on a text: one pass over it for every dictionary of every site.

The language model runs once, each dictionary once, and of the codes only counts per latent stay. Measuring changes
nothing.
"""

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.errors import UserError
from sae_core.evaluation.counting import FIRST, Cells, SiteCount
from sae_core.evaluation.reconstruction import Profile, Quality
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import outlier_norm_of
from sae_core.sites import Site

CODES_AT_ONCE = 2**24
"""Entries of a dense code that are in memory at a time."""


def quality(
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    contexts: Int[Tensor, "contexts pos"],
    *,
    at_once: int = 32,
) -> dict[Site, Quality]:
    """FVU, L0 and dead share of each dictionary on the content tokens of `contexts`, in one pass."""
    measured = profiles(model, {"": dictionaries}, contexts, at_once=at_once)[""]
    return {site: profile.quality for site, profile in measured.items()}


@torch.no_grad()
def profiles(
    model: LanguageModel,
    sets: Mapping[str, Mapping[Site, Dictionary]],
    contexts: Int[Tensor, "contexts pos"],
    *,
    at_once: int = 32,
    codes_at_once: int = CODES_AT_ONCE,
) -> dict[str, dict[Site, Profile]]:
    """The profile of every dictionary of every set on the content tokens of `contexts`, all in one pass.

    `at_once` contexts go through the model together, and `codes_at_once` entries of a code are in memory at a time.
    Raises `UserError` where the text holds special tokens only.
    """
    content = model.content(contexts)
    if not content.any():
        raise UserError("the text holds no tokens but special ones; give another text")
    cells = Cells(contexts, content)
    counts: dict[Site, dict[float, SiteCount]] = {}
    """By the norm beyond which dictionaries leave tokens out, which those of a site mostly share."""
    limits: dict[tuple[str, Site], float] = {}
    for name, by_site in sets.items():
        for site, dictionary in by_site.items():
            limit = limits[name, site] = outlier_norm_of(dictionary)
            count = counts.setdefault(site, {}).setdefault(limit, SiteCount(cells, limit, codes_at_once))
            count.include(name, partial(by_site.__getitem__, site))
    for rows in _chunks(len(contexts), model.at_once(at_once)):
        kept, place = content[rows], cells.place[rows][content[rows]]
        first, spot = (kept & (kept.cumsum(-1) == 1))[kept], kept.nonzero() + torch.tensor([int(rows[0]), 0])
        for site, h in model.record(contexts[rows], [*counts]).items():
            x = h[kept.to(h.device)]
            for count in counts[site].values():
                count.add(x, *(part.to(x.device) for part in (place, first, spot)))

    def text(context: int, position: int) -> str:
        return "".join(map(model.token_text, contexts[context, max(0, position - 3) : position + 1].tolist()))

    return {
        name: {site: counts[site][limits[name, site]].profile(name, text) for site in sorted(by_site)}
        for name, by_site in sets.items()
    }


def _chunks(n: int, at_once: int) -> list[Tensor]:
    """Numbers of contexts that go through the model together: at first as many as the shift is taken of."""
    first = max(at_once, FIRST)
    return [torch.arange(n)[:first], *torch.arange(n)[first:].split(at_once)][: None if n > first else 1]
