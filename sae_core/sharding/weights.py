"""Weights at the start, and whole dictionaries at the end, of which every rank has its latents."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sae_core.dictionaries.saes import SAE
from sae_core.errors import UserError
from sae_core.sharding.ranks import BLOCK, Ranks

_DRAWN = 2**22
"""Random numbers that are drawn, and left, at a time."""


def untrained(new: Callable[..., SAE], d_in: int, n_latents: int, *, generator: torch.Generator, ranks: Ranks) -> SAE:
    """This rank's latents of the dictionary that `new(d_in, n_latents, generator=...)` is; bit for bit, on any number.

    What comes before them is drawn and left, which takes a second per 80 million numbers and no memory. Vectors hold
    a number per latent, which does not depend on `d_in`.
    """
    if ranks.shards == 1:
        return new(d_in, n_latents, generator=generator)
    here = ranks.latents(n_latents)
    if n_latents < BLOCK * ranks.shards:
        most = max(1, n_latents // BLOCK)
        raise UserError(
            f"{n_latents} latents cannot be spread over {ranks.shards} ranks; give --shards {most} or fewer"
        )
    skip(generator, here.start * d_in)
    sae, narrow = new(d_in, len(here), generator=generator), new(1, n_latents, generator=torch.Generator())
    for name, parameter in sae.named_parameters():
        if parameter.ndim == 1 and name != "b_dec":
            parameter.data.copy_(narrow.get_parameter(name)[here.start : here.stop])
    return sae


def skip(generator: torch.Generator, count: int) -> None:
    """Draw so many normal numbers, a multiple of 16, and leave them: torch draws them in groups of 16."""
    assert count % 16 == 0
    for start in range(0, count, _DRAWN):
        torch.randn(min(_DRAWN, count - start), generator=generator)


def whole(sae: SAE, n_latents: int, ranks: Ranks) -> SAE | None:
    """On rank 0, in its host's memory, the dictionary of which each rank has the latents `sae`; elsewhere None."""
    other, tensors = copy.copy(sae), {"b_dec": sae.b_dec.detach().cpu().clone()}
    for name, part in (*sae.named_parameters(), *sae.named_buffers()):
        part = part.detach().T if name == "W_enc" else part.detach()
        if name != "b_dec" and (rows := gathered(part, n_latents, ranks)) is not None:
            tensors[name] = rows.T if name == "W_enc" else rows
    if ranks.rank:
        return None
    other._parameters = {name: nn.Parameter(tensors[name], requires_grad=False) for name in sae._parameters}
    other._buffers = {name: tensors.get(name) for name in sae._buffers}
    return other


def gathered(part: Tensor, n_latents: int, ranks: Ranks) -> Tensor | None:
    """On rank 0 the rows of all latents `[n_latents, ...]`, on its CPU; elsewhere None."""
    import torch.distributed as dist

    part = part.cpu().contiguous()
    if ranks.rank:
        if ranks.rank < ranks.shards:  # other replicas have the same
            dist.send(part, group=ranks.control, group_dst=0)
        return None
    rows = part.new_empty(n_latents, *part.shape[1:])
    for shard in range(ranks.shards):
        here = rows[ranks.latents(n_latents, shard).start : ranks.latents(n_latents, shard).stop]
        if shard:
            dist.recv(here, group=ranks.control, group_src=shard)
        else:
            here.copy_(part)
    return rows
