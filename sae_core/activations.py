"""Activations of many sites from one forward pass, shuffled across contexts.

Contexts follow one seeded permutation per epoch. A block is the activations of some dozen to thousand
contexts at every site, its tokens shuffled by (seed, block): a pure function of both, so that a resumed
run harvests its block again and continues inside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from sae_core.models import LanguageModel
from sae_core.seeds import generator_for
from sae_core.sites import Site


@dataclass(frozen=True, eq=False)
class ActivationStream:
    """Endless batches of activations; the same tokens at every site."""

    model: LanguageModel
    contexts: Int[Tensor, "contexts pos"]
    sites: tuple[Site, ...]
    seed: int
    batch: int
    """Tokens per batch; a block's last tokens, fewer than a batch, are left out."""
    budget: int = 512 * 2**20
    """Bytes that harvesting one block may take."""

    @property
    def block_contexts(self) -> int:
        """Contexts per block: as many as the budget allows and the text has, at least enough for two batches.

        Harvesting holds a block twice for a moment, so that half the budget is the block's.
        """
        width = sum(self.model.d_in(site) for site in self.sites)
        fitting = self.budget // (8 * width * self.contexts.shape[1])
        return max(min(fitting, len(self.contexts)), -(-2 * self.batch // self.contexts.shape[1]))

    def tokens(self, block: int) -> Int[Tensor, "contexts pos"]:
        """The contexts of one block; epochs follow each other without a seam."""
        n, size = len(self.contexts), self.block_contexts
        places = range(block * size, (block + 1) * size)
        order = [self._permutation(place // n)[place % n] for place in places]
        return self.contexts[torch.stack(order)]

    def block(self, block: int) -> Iterator[dict[Site, Tensor]]:
        """The batches `[batch, d_in]` of one block; BOS and special tokens are left out."""
        rows = harvest(self.model, self.tokens(block), self.sites)
        n = len(next(iter(rows.values())))
        order = torch.randperm(n, generator=generator_for(self.seed, "block", block))
        for start in range(0, n - self.batch + 1, self.batch):
            chosen = order[start : start + self.batch]
            yield {site: x[chosen.to(x.device)] for site, x in rows.items()}

    def _permutation(self, epoch: int) -> Tensor:
        return _permutation(len(self.contexts), self.seed, epoch)


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=generator_for(seed, "epoch", epoch))


@torch.no_grad()
def harvest(
    model: LanguageModel, contexts: Int[Tensor, "contexts pos"], sites: tuple[Site, ...], *, at_once: int = 32
) -> dict[Site, Tensor]:
    """Activations `[tokens, d_in]` of all content tokens, in the order of the text."""
    parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for chunk in contexts.split(at_once):
        content = model.content(chunk).to(model.device)
        for site, h in model.record(chunk, sites).items():
            parts[site].append(h[content])
    return {site: torch.cat(rows) for site, rows in parts.items()}
