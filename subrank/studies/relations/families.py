"""Families of features: which latent of a larger dictionary belongs to which of a smaller one of the same site.

    by direction   parent(j) = argmax_i d_i . d_j                          if that is at least `NEAR`
    by activity    parent(j) = argmax_i P(i | j) - P(i | not j)            if that is at least `TOGETHER`

P(i | j) is the share of the tokens on which latent j of the larger one is active on which i of the smaller one is, too;
what is subtracted makes a latent that is always active nobody's parent. A feature splits when it has two children or
more. Cost of the activity: n_small x n_large additions per token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR, TOGETHER = 0.7, 0.5
NOBODY = -1


def nearest(scores: Tensor, least: float) -> Tensor:
    """For each row of `scores` `[child, parent]` the column of its largest, or `NOBODY` where that is below `least`."""
    best, where = scores.max(1)
    return where.masked_fill(best < least, NOBODY)


def n_children(parents: Tensor, n_small: int) -> Tensor:
    """How many children each latent of the smaller dictionary has, `[n_small]`."""
    return torch.bincount(parents[parents != NOBODY], minlength=n_small)


def edge_f1(parents: Tensor, truth: Tensor) -> float:
    """F1 of the edges from children to parents against a known tree."""
    right = int(((parents == truth) & (truth != NOBODY)).sum())
    return 2 * right / max(1, int((parents != NOBODY).sum() + (truth != NOBODY).sum()))


class Coactivity:
    """On how many tokens latents of two dictionaries are active, and together; tokens come in batches."""

    def __init__(self, n_small: int, n_large: int):
        self.n_tokens, self.small, self.large = 0, torch.zeros(n_small), torch.zeros(n_large)
        self.both = torch.zeros(n_large, n_small)

    def add(self, small: Tensor, large: Tensor) -> None:
        """Count the latents that are active on the same tokens, `[tokens, n_small]` and `[tokens, n_large]` bool."""
        a, b = small.float(), large.float()
        self.n_tokens += len(a)
        self.small += a.sum(0)
        self.large += b.sum(0)
        self.both += b.T @ a

    def excess(self) -> Tensor:
        """P(i | j) - P(i | not j), `[n_large, n_small]`; 0 for a latent j that is active nowhere, or everywhere."""
        active, silent = self.large[:, None], self.n_tokens - self.large[:, None]
        difference = self.both / active - (self.small - self.both) / silent
        return difference.masked_fill((active == 0) | (silent == 0), 0.0)


class Seen:
    """Which latents of two dictionaries are active on which tokens: families are known only once all are counted."""

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = []

    def add(self, small: Tensor, large: Tensor) -> None:
        """Keep a batch, `[tokens, n_small]` and `[tokens, n_large]` bool, as the places that are true."""
        self._batches.append((small.to_sparse(), large.to_sparse()))

    def covered(self, parents: Tensor) -> Tensor:
        """The share of each smaller latent's tokens on which a child of it is active, `[n_small]`."""
        active = with_child = torch.zeros(self._batches[0][0].shape[1])
        member = F.one_hot(parents + 1, len(active) + 1)[:, 1:].float()
        for small, large in self._batches:
            a, b = small.to_dense(), large.to_dense().float()
            active, with_child = active + a.sum(0), with_child + (a & (b @ member > 0)).sum(0)
        return with_child / active
