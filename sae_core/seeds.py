"""Random generators: one integer seed, split by purpose."""

import hashlib

import torch


def generator_for(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator that depends on `seed` and `purpose` only, so that uses do not disturb each other."""
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
