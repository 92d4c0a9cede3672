"""Checkpoints of several ranks, read by any other number: each file has the latents of one shard."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sae_core.files import read_tensors
from sae_core.sharding.ranks import Ranks

_ALIKE = ("/b_dec", "/state/threshold", "/state/lost")
"""Endings of what all shards have alike."""


def latents_of(
    parts: Mapping[Path, str], expansions: Sequence[int], ranks: Ranks
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tensors of this rank's latents, from the files of all shards with their digests, and how many are dead.

    `expansions` are those of the members, whose numbers the names of tensors begin with. Each file is read once, and
    only what is needed of it is kept.
    """
    writers, pieces, n_dead = Ranks(shards=len(parts)), defaultdict(list), defaultdict(int)
    for shard, (path, digest) in enumerate(parts.items()):
        tensors = read_tensors(path, digest)
        for name, tensor in tensors.items():
            number, site, *_ = name.split("/")
            n_latents = expansions[int(number)] * tensors[f"{number}/{site}/W_dec"].shape[1]
            written, wanted = writers.latents(n_latents, shard), ranks.latents(n_latents)
            first, last = max(written.start, wanted.start), min(written.stop, wanted.stop)
            if tensor.ndim == 0 or name.endswith(_ALIKE):
                pieces[name] = [tensor]
            elif name.endswith("/state/dead"):
                n_dead[name] += len(tensor)
                pieces[name].append(tensor[(tensor >= wanted.start) & (tensor < wanted.stop)] - wanted.start)
            elif first < last:
                pieces[name].append(tensor.narrow(_dimension(name), first - written.start, last - first).clone())
    whole = {name: torch.cat(each, _dimension(name)) if each[0].ndim else each[0] for name, each in pieces.items()}
    return whole, n_dead


def _dimension(name: str) -> int:
    """That of latents; moments of the encoder lie as its transpose."""
    return 1 if name.endswith("/W_enc") and name.count("/") == 2 else 0
