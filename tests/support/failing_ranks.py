"""Processes of which one fails, and what the others say."""

import os
import time
from pathlib import Path

import torch
from planted import generator

from sae_core.errors import UserError
from sae_core.sharding.control import join, largest
from sae_core.sharding.ranks import added


def work(rank: int, port: int, folder: Path, how: str, shards: int, replicas: int) -> None:
    """Three steps of which rank 1 does not take the second; what is said of it, and by whom, ends up in files."""
    torch.set_num_threads(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = join(None, place | {"RANK": str(rank), "WORLD_SIZE": str(shards * replicas)}, patience=2.0)
    object.__setattr__(world, "grace", 1.0)
    ranks = world.arranged(shards, replicas)
    try:
        with world.watched():
            for step in range(3):
                if step and rank == 1:
                    time.sleep(60) if how == "hangs" else os._exit(0)
                for group in (ranks.shard_group, ranks.replica_group):
                    added(torch.randn(5, generator=generator()), group)
                largest(ranks, step)
    except UserError as error:
        (folder / f"{rank}-{'says' if world.speaks() else 'is silent'}").write_text(str(error))
        time.sleep(4 if rank == 0 else 0)  # it holds the store
    os._exit(0)
