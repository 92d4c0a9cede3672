"""Processes that train together, on this machine, over gloo: forked once, each works through every case of a module."""

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from planted import unchecked
from torch.distributed.device_mesh import DeviceMesh

from sae_core.sharding.ranks import Ranks

MESHES = {"R=2": (1, 2), "R=4": (1, 4), "D=2": (2, 1), "D=2 R=2": (2, 2)}
"""Replicas and shards."""


def on_ranks(size: int, work: Callable[[int], dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What `work(rank)` returns in each of so many processes, which form one group; raises what went wrong in one."""
    children = []
    for rank in range(size):
        children.append(os.fork())
        if children[-1] == 0:
            _work(rank, size, work, folder)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    errors = [path.read_text() for path in sorted(folder.glob("error-*"))]
    assert not any(statuses), "\n".join(errors) or statuses
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _work(rank: int, size: int, work: Callable[[int], dict[str, Any]], folder: Path) -> None:
    status = 1
    try:
        torch.set_num_threads(1)
        store = dist.FileStore(str(folder / "store"), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
        with unchecked():
            torch.save(work(rank), folder / f"{rank}.pt")
        dist.barrier()
        status = 0
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def meshes() -> dict[str, Ranks]:
    """This process's place on every mesh; the smaller ones are made twice, of ranks 0, 1 and of ranks 2, 3."""
    result = {}
    for name, (replicas, shards) in MESHES.items():
        for first in range(0, 4, replicas * shards):
            members = torch.arange(first, first + replicas * shards)
            everyone = dist.new_group(members.tolist())
            mesh = DeviceMesh("cpu", members.view(replicas, shards))
            if dist.get_rank() in members:
                result[name] = Ranks.on(mesh, everyone, everyone)
    return result
