"""Processes that train together, on this machine, over gloo: each works through every case of a module."""

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from sae_core.sharding.ranks import Ranks

MESHES = {"R=2": (1, 2), "R=4": (1, 4), "D=2": (2, 1), "D=2 R=2": (2, 2)}
"""Replicas and shards."""


LIMIT = timedelta(seconds=60)
"""That processes wait for each other."""
FRESH = multiprocessing.get_context("forkserver")
"""Processes that begin as copies of one in which nothing has run yet: it imports torch once."""
FRESH.set_forkserver_preload(["preloaded"])


def fresh(work: Callable[..., Any], *arguments: Any) -> Any:
    """A process that does some work, begun."""
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):  # what it imports first it looks for there
        forkserver.ensure_running()
    process = FRESH.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def on_ranks(
    size: int, work: Callable[..., dict[str, Any]], folder: Path, *arguments: Any, limit: float = 120.0
) -> list[dict[str, Any]]:
    """What `work(rank, *arguments)`, a function of a module, returns in each of so many processes of one group.

    Raises what went wrong in one of them, and where they are not done after `limit` seconds.
    """
    processes = [fresh(_work, rank, size, work, folder, *arguments) for rank in range(size)]
    until = time.monotonic() + limit
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    errors = [path.read_text() for path in sorted(folder.glob("error-*"))]
    assert not late, "\n".join([f"{len(late)} of {size} processes were not done after {limit:g} s", *errors])
    assert not any(process.exitcode for process in processes), "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _work(rank: int, size: int, work: Callable[..., dict[str, Any]], folder: Path, *arguments: Any) -> None:
    try:
        torch.set_num_threads(1)
        store = dist.FileStore(str(folder / "store"), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=LIMIT)
        torch.save(work(rank, *arguments), folder / f"{rank}.pt")
        dist.barrier()
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        os._exit(1)


def meshes() -> dict[str, Ranks]:
    """This process's place on every mesh; the smaller ones are made twice, of ranks 0, 1 and of ranks 2, 3."""
    result = {}
    for name, (replicas, shards) in MESHES.items():
        for first in range(0, 4, replicas * shards):
            members = torch.arange(first, first + replicas * shards)
            everyone = dist.new_group(members.tolist(), timeout=LIMIT)
            if ranks := Ranks.on(members.view(replicas, shards), LIMIT, everyone, everyone):
                result[name] = ranks
    return result
