"""Processes of which one fails, and what the others say."""

import os
import time
from pathlib import Path

import torch
from planted import generator

from sae_core.errors import UserError
from sae_core.sharding.control import join, largest
from sae_core.sharding.ranks import added


def work(rank: int, port: int, folder: Path, how: str) -> None:
    """Three steps of which rank 1 does not take the second; what is said of it, and by whom, ends up in files."""
    torch.set_num_threads(1)
    environment = {"RANK": str(rank), "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = join(None, environment, patience=2.0)
    object.__setattr__(world, "grace", 1.0)
    ranks = world.arranged(3, 1)
    try:
        with world.watched():
            for step in range(3):
                if step and rank == 1:
                    time.sleep(60) if how == "hangs" else os._exit(0)
                largest(ranks, step)
                added(torch.randn(5, generator=generator()), None)
    except UserError as error:
        (folder / f"{rank}-{'says' if world.speaks() else 'is silent'}").write_text(str(error))
        time.sleep(2 if rank == 0 else 0)  # it holds the store
    os._exit(0)
