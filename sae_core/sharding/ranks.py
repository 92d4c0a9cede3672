"""Processes that train a dictionary together: which latents and tokens are whose, and what they exchange.

`shards` ranks hold the latents, each a range of them; `replicas` such groups see other tokens of every batch. Of a
batch `[batch, d_in]` a replica has `batch / replicas` rows, at which each of its ranks reads its own latents; of these
rows `batch / ranks` are a rank's own, whose reconstruction it sums up:

    x_hat of its own rows = sum over shards of (codes of the shard's latents) W_dec        (reduce-scatter)
    loss                  = sum over ranks of what its own rows cost                       (all-reduce of numbers)
    d loss / d x_hat      = that of all rows of the replica                                (all-gather)

so that weights of latents get their whole gradient where they are. Weights are never sent, but for replicas, which add
up their gradients. In one process (`ALONE`) nothing is exchanged, and every method returns what it is given.

Volume per step and rank: 12 batch d_in + 4 batch k bytes, and 16 n_latents / shards d_in with replicas.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

BLOCK = 16
"""Shards begin at multiples of so many latents: there random numbers can be drawn from the middle (`weights.py`)."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """One process among those that train together: `rank` of `shards` times `replicas`."""

    shards: int = 1
    replicas: int = 1
    rank: int = 0
    shard_group: Any = None
    """The ranks that have the other latents for the same tokens."""
    replica_group: Any = None
    """The ranks that have the same latents for other tokens."""
    everyone: Any = None
    """All of these ranks; None for all that there are."""
    control: Any = None
    """All of these ranks, for messages between hosts."""

    @classmethod
    def on(
        cls, mesh: Int[Tensor, "replicas shards"], timeout: timedelta, everyone: Any = None, control: Any = None
    ) -> "Ranks | None":
        """This process's place on a mesh, whose groups wait no longer than `timeout`; None where it has none there.

        All processes must ask. Of one replica, or one shard, no groups are made: they are `everyone`.
        """
        (replicas, shards), by_shard, by_replica = mesh.shape, everyone, everyone
        if replicas > 1 and shards > 1:
            by_shard, _ = dist.new_subgroups_by_enumeration(mesh.tolist(), timeout=timeout)
            by_replica, _ = dist.new_subgroups_by_enumeration(mesh.T.tolist(), timeout=timeout)
        numbers = mesh.flatten().tolist()
        if dist.get_rank() not in numbers:
            return None
        return cls(shards, replicas, numbers.index(dist.get_rank()), by_shard, by_replica, everyone, control)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.shards * self.replicas

    @property
    def shard(self) -> int:
        """Which part of the latents is here."""
        return self.rank % self.shards

    def latents(self, n_latents: int, shard: int | None = None) -> range:
        """The latents of a shard, by default of this one's."""
        shard, n_blocks = self.shard if shard is None else shard, -(-n_latents // BLOCK)
        first, last = (BLOCK * (number * n_blocks // self.shards) for number in (shard, shard + 1))
        return range(first, min(last, n_latents))

    def rows(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "rows ..."]:
        """The rows of a batch that this replica sees."""
        return x if self.replicas == 1 else x.chunk(self.replicas)[self.rank // self.shards]

    def answered(self, rows: Float[Tensor, "rows ..."]) -> Float[Tensor, "answered ..."]:
        """Of the rows of a replica those that this rank answers for."""
        return rows if self.shards == 1 else rows.chunk(self.shards)[self.shard]

    # ---- what is added up, with gradients ------------------------------------------------------

    def total(self, share: Tensor) -> Tensor:
        """The sum of all ranks' shares; the gradient of a share is that of the sum."""
        return share if self.size == 1 else _Total.apply(share, self.everyone)

    def mean(self, share: Tensor) -> Tensor:
        """The mean over tokens, where each rank has that of its replica's rows over its own latents."""
        return share if self.size == 1 else self.total(share) / self.replicas

    def mean_row(self, x: Float[Tensor, "answered d_in"]) -> Float[Tensor, "d_in"]:
        """The mean of a batch's rows, of which each rank has its own; without gradient."""
        return x.mean(0) if self.size == 1 else added(x.detach().sum(0), self.everyone) / (len(x) * self.size)

    def summed(self, part: Float[Tensor, "rows *d_in"]) -> Float[Tensor, "answered *d_in"]:
        """This rank's own rows of the sum over shards of what their latents decode to."""
        return part if self.shards == 1 else _ReduceScatter.apply(part, self.shard_group, self.shards)

    def smallest(self, x: Tensor) -> Tensor:
        """The smallest of all ranks' numbers, without gradient."""
        return x if self.size == 1 else added(x.detach(), self.everyone, dist.ReduceOp.MIN)

    def least_of_replicas(self, x: Tensor) -> Tensor:
        """The smallest number that a replica has, for each latent."""
        return x if self.replicas == 1 else added(x, self.replica_group, dist.ReduceOp.MIN)

    # ---- gradients of weights ------------------------------------------------------------------

    def add_gradients(self, weights: dict[str, nn.Parameter]) -> None:
        """Complete the gradients: `b_dec` is everywhere and has a share from every rank, latents one per replica."""
        for name, weight in weights.items():
            if weight.grad is not None and (name == "b_dec" or self.replicas > 1) and self.size > 1:
                gradient = weight.grad if weight.grad.is_contiguous() else weight.grad.T
                weight.grad = None  # its memory may be written to below
                both = added(gradient, self.everyone if name == "b_dec" else self.replica_group)
                weight.grad = both if both.shape == weight.shape else both.T

    def clip_gradients(self, weights: dict[str, nn.Parameter], limit: float) -> None:
        """Cut the norm of the whole dictionary's gradient to `limit`, as `clip_grad_norm_` does for one process."""
        if self.shards == 1:
            torch.nn.utils.clip_grad_norm_(weights.values(), limit)
            return
        gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        squares = [gradient.square().sum() for name, gradient in gradients.items() if name != "b_dec"]
        norm = added(torch.stack(squares).sum(), self.shard_group) + gradients["b_dec"].square().sum()
        for gradient in gradients.values():
            gradient.mul_((limit / (norm.sqrt() + 1e-6)).clamp(max=1.0))


ALONE = Ranks()
"""One process, which has all latents and sees all tokens."""


def added(x: Tensor, group: Any, how: Any = dist.ReduceOp.SUM) -> Tensor:
    """The sum over a group; bit for bit the same on each of them. `x` is left as it is."""
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, how, group)
    return x


def exchanged(x: Float[Tensor, "ranks ..."], group: Any) -> Float[Tensor, "ranks ..."]:
    """`x[r]` goes to rank r of the group; returned is what each of them sent here."""
    sent = x.contiguous()
    received = torch.empty_like(sent)
    # as bytes: backends do not take all types
    dist.all_to_all_single(received.view(-1).view(torch.uint8), sent.view(-1).view(torch.uint8), group=group)
    return received


# torch's names since 2.13; those before are deprecated
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, share, group):
        return added(share.detach(), group)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part, group, size):
        ctx.group, ctx.size = group, size
        answered = part.new_empty(len(part) // size, *part.shape[1:])
        _reduce_scatter(answered, part.contiguous(), group=group)
        return answered

    @staticmethod
    def backward(ctx, gradient):
        whole = gradient.new_empty(len(gradient) * ctx.size, *gradient.shape[1:])
        _all_gather(whole, gradient.contiguous(), group=ctx.group)
        return whole, None, None
