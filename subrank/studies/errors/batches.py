"""Tokens of a text with what dictionaries make of them, a few contexts at a time.

Special tokens are left out, and those that are of massive norm at one of the sites that are read (`outliers.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.outliers import FACTOR, Limits, inliers_everywhere, limits_of, norm_limit
from sae_core.sites import Site

AT_ONCE = 8
"""Contexts that are read and encoded together."""


@dataclass(frozen=True)
class Place:
    """Which dictionary."""

    set: str
    site: Site
    earlier: Site | None = None
    """The nearest site of the set that feeds this one."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Tokens of a few contexts at one site, less those that are left out."""

    x: Float[Tensor, "tokens d_in"]
    x_hat: Float[Tensor, "tokens d_in"]
    l0: Int[Tensor, "tokens"]
    """Active latents."""
    tokens: Int[Tensor, "tokens"]
    contexts: Int[Tensor, "tokens"]
    """The number of each token's context."""
    earlier: Float[Tensor, "tokens d_earlier"] | None = None
    """x_hat of the earlier site."""
    n_left_out: int = 0
    """Tokens of massive norm."""

    @cached_property
    def error(self) -> Float[Tensor, "tokens d_in"]:
        return self.x - self.x_hat

    @cached_property
    def error_norm(self) -> Float[Tensor, "tokens 1"]:
        return norm(self.error)


def norm(x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens 1"]:
    """|x| of each row."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Reader:
    """A model, and dictionaries by set and site, through which text is read."""

    model: LanguageModel
    dictionaries: Mapping[str, Mapping[Site, Dictionary]]
    limits: Limits
    """The norm at each site above which a token is left out."""

    @classmethod
    def of(
        cls, model: LanguageModel, sets: Mapping[str, Mapping[Site, Dictionary]], contexts: Int[Tensor, "contexts pos"]
    ) -> "Reader":
        """With the limits of the dictionaries, and ten times the median norm of the first contexts."""
        few, known = contexts[: model.at_once(AT_ONCE)], limits_of(sets.values())
        content = model.content(few)
        norms = {site: norm(h[content.to(h.device)]) for site, h in model.record(few, known).items()}
        return cls(model, sets, {site: min(known[site], norm_limit(n[:, 0], FACTOR)) for site, n in norms.items()})

    @property
    def at_once(self) -> int:
        return self.model.at_once(AT_ONCE)

    @torch.no_grad()
    def read(self, places: Sequence[Place], contexts: Int[Tensor, "contexts pos"]) -> Iterator[dict[Place, Batch]]:
        """The same tokens at every place, `at_once` contexts at a time."""
        sites = {site for place in places for site in (place.site, place.earlier) if site}
        for number, tokens in enumerate(contexts.split(self.at_once)):
            recorded = self.model.record(tokens, sites)
            content = self.model.content(tokens)
            inliers = inliers_everywhere(recorded, self.limits)
            kept = content if inliers is None else content & inliers.cpu()
            contexts_of = (number * self.at_once + torch.arange(len(tokens)))[:, None].expand_as(tokens)[kept]
            rows = {site: h[kept.to(h.device)] for site, h in recorded.items()}
            known: dict[tuple[str, Site], tuple[Tensor, Tensor]] = {}
            for key in {(p.set, site) for p in places for site in (p.site, p.earlier) if site}:
                dictionary = self.dictionaries[key[0]][key[1]]
                f = dictionary.encode(rows[key[1]])
                known[key] = dictionary.decode(f), (f != 0).sum(-1).cpu()
            yield {
                place: Batch(
                    x=rows[place.site],
                    x_hat=known[place.set, place.site][0],
                    l0=known[place.set, place.site][1],
                    tokens=tokens[kept],
                    contexts=contexts_of,
                    earlier=known[place.set, place.earlier][0] if place.earlier else None,
                    n_left_out=int(content.sum() - kept.sum()),
                )
                for place in places
            }

    def rows(self, place: Place, contexts: Int[Tensor, "contexts pos"], most: int) -> Batch:
        """At most so many tokens of a place in one batch."""
        batches, n = [], 0
        for batch in self.read([place], contexts):
            batches.append(batch[place])
            n += len(batches[-1].x)
            if n >= most:
                break
        parts = zip(*((b.x, b.x_hat, b.l0, b.tokens, b.contexts) for b in batches), strict=True)
        x, x_hat, l0, tokens, numbers = (torch.cat(part)[:most] for part in parts)
        return Batch(x, x_hat, l0, tokens, numbers)
