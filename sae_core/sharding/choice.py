"""Which latents are active, where they are spread over ranks: the same as in one process.

TopK. Every rank sends its k candidates of a row to the rank whose row it is, which answers how many of them are among
the k largest of all: `all_to_all` of values `[batch, k]` and back of counts. Of equal values the lower latent comes
first. BatchTopK. The threshold is the (k batch)-th largest activation of all, found by counting: the bits of positive
floats sort as integers, so that each round of 256 counts, added up over ranks, gives its next 8 bits. Of equal values
at the threshold all are active.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_core.dictionaries import sparse
from sae_core.dictionaries.codes import Codes
from sae_core.sharding.ranks import Ranks, added, exchanged


def top(ranks: Ranks, pieces: Iterable[Float[Tensor, "rows n_latents"]], *ks: int) -> list[Codes]:
    """For each k, rising, this rank's part of the k largest entries of each row; `pieces` are some rows after others.

    Of equal values the first are taken; on a CPU alone any, as torch has it.
    """
    values, indices, n = [], [], 0
    for pre in pieces:
        n = pre.shape[1]
        here = min(ks[-1], n)
        if ranks.shards > 1 or pre.device.type != "cpu":
            largest = sparse.ranked_top(pre, here)
        else:  # where several are wanted, the largest come first
            largest = sparse.top(pre, here) if len(ks) == 1 and here else pre.topk(here, dim=-1)
        values.append(largest[0])
        indices.append(largest[1])
    v, i = (each[0] if len(each) == 1 else torch.cat(each) for each in (values, indices))
    if ranks.shards == 1:
        return [Codes.of_rows(i[:, :k], v[:, :k], n) for k in ks]
    n_kept = _survivors(ranks, v, *ks)
    # read, which waits for the device: of k candidates about k / shards are left, which all that follows costs
    widest = n_kept.amax(0).tolist()
    column = torch.arange(ks[-1], device=v.device)
    return [
        Codes.of_rows(i[:, :most], v[:, :most], n).where_kept((column[:most] < n_kept[:, [number]]).flatten())
        for number, most in enumerate(widest)
    ]


def _survivors(ranks: Ranks, values: Float[Tensor, "batch c"], *ks: int) -> Int[Tensor, "batch ks"]:
    """For each k how many of this rank's candidates, which are in order, are among the k largest of all ranks."""
    width, (batch, n) = ks[-1], values.shape
    sent = values.new_full((batch, width), -torch.inf)
    sent[:, :n] = values
    received = exchanged(sent.view(ranks.shards, -1, width), ranks.shard_group)
    whole = received.transpose(0, 1).flatten(1)  # [own rows, ranks * width]
    sources = whole.sort(dim=-1, descending=True, stable=True).indices // width
    shards = torch.arange(ranks.shards, device=values.device)[:, None, None]
    counts = torch.stack([(sources[:, :k] == shards).sum(-1) for k in ks], -1)  # [ranks, own rows, ks]
    return exchanged(counts, ranks.shard_group).view(batch, len(ks)).clamp_max(n)


def batch_top(ranks: Ranks, pieces: Iterable[Float[Tensor, "rows n_latents"]], count: int) -> Codes:
    """This rank's part of the `count` largest entries of all rows and latents, as far as they are positive."""
    parts = [sparse.batch_top(pre, min(count, pre.numel())) for pre in pieces]
    codes = parts[0] if len(parts) == 1 else sparse.largest_of(Codes.stacked(parts), count)
    return codes if ranks.size == 1 else codes.where_kept(codes.values >= kth_largest(ranks, codes.values, count))


def kth_largest(ranks: Ranks, values: Float[Tensor, "entries"], count: int) -> Float[Tensor, ""]:
    """The `count`-th largest of all ranks' values, none of which is negative; 0 where there are fewer."""
    size = values.element_size()
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    # -0.0 becomes 0.0, whose bits are those of the smallest
    bits, playing = (values + 0.0).contiguous().view(whole).long(), torch.ones_like(values, dtype=torch.bool)
    left, result = torch.full((), count, device=values.device), bits.new_zeros(())
    for shift in range(8 * size - 8, -8, -8):
        digit = (bits >> shift) & 255
        counts = bits.new_zeros(257).index_add_(0, digit.where(playing, 256), torch.ones_like(digit))
        counts = added(counts[:256], ranks.everyone)
        at_least = counts.flip(0).cumsum(0).flip(0)
        place = ((at_least >= left).sum() - 1).clamp_min(0)
        left = left - (at_least[place] - counts[place])
        playing, result = playing & (digit == place), result | (place << shift)
    return result.to(whole).view(values.dtype)
