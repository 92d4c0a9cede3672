"""The batches of one process, to the bit, where every rank runs the language model on a part of the contexts.

A block's forward passes are dealt out, one to each rank in turn; every rank knows the order of the block's tokens, and
whose they are. A batch comes together by one all-to-all, in which each rank sends its rows to all. So batches depend on
no number of ranks, and are those of one process. A block takes `budget` bytes of all ranks together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.data.activation_cache import CachedStream
from sae_core.data.activations import ActivationStream
from sae_core.outliers import NO_LIMITS, Limits, inliers_everywhere
from sae_core.sharding.ranks import Ranks
from sae_core.sites import Site


@dataclass(frozen=True, eq=False)
class SharedStream:
    """The batches of another stream, whose contexts ranks read together; all ranks take the same batches."""

    stream: ActivationStream | CachedStream
    """A cache is only read."""
    ranks: Ranks

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.stream.sites

    @property
    def batch(self) -> int:
        """Tokens per batch."""
        return self.stream.batch

    def block(self, block: int, limits: Limits = NO_LIMITS, steps: int | None = None) -> Iterator[dict[Site, Tensor]]:
        """The batches `[batch, d_in]` of one block, whole on every rank; the same tokens at every site."""
        inner = self.stream.stream if isinstance(self.stream, CachedStream) else self.stream
        n = inner.n_contexts(block, steps)
        content, order = inner.order(block, n)
        owner = inner.dealt(n, self.ranks.size)[:, None].expand_as(content)[content]
        here = owner == self.ranks.rank
        place = here.cumsum(0) - 1
        rows = self.stream.reader(block, n, (self.ranks.rank, self.ranks.size))
        kept = inliers_everywhere(rows(), limits)
        if kept is not None:
            everywhere = torch.zeros(len(owner), dtype=torch.uint8)
            everywhere[here] = kept.cpu().to(torch.uint8)
            dist.all_reduce(everywhere, dist.ReduceOp.MAX, self.ranks.control)
            order = order[everywhere.bool()[order]]
        for chosen in order.split(self.batch):
            if len(chosen) == self.batch:
                yield {site: self._together(x, owner[chosen], place[chosen]) for site, x in rows().items()}

    def _together(
        self, x: Float[Tensor, "tokens d_in"], owner: Int[Tensor, "batch"], place: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch d_in"]:
        """The batch of which each token is row `place` of its owner's `x`."""
        counts = owner.bincount(minlength=self.ranks.size).tolist()
        mine = x[place[owner == self.ranks.rank].to(x.device)]
        received, splits = x.new_empty(len(owner), x.shape[1]), [len(mine)] * self.ranks.size
        to_all = mine.repeat(self.ranks.size, 1)
        dist.all_to_all_single(received, to_all, counts, splits, group=self.ranks.everyone)
        by_owner = owner.argsort(stable=True).to(x.device)
        return torch.empty_like(received).index_copy_(0, by_owner, received)
