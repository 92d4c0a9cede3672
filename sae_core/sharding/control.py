"""Messages between the hosts of all ranks: what they must have in common, what they decide together, who is missing.

They go over gloo whatever the tensors go over, so that a host that waits for another one learns when that has ended.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sae_core.errors import UserError
from sae_core.model.device import usable
from sae_core.progress import duration
from sae_core.sharding.ranks import BLOCK, Ranks

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class World:
    """All processes that `torchrun` has started, and this one among them."""

    rank: int
    size: int
    device: str
    """`cuda:1`, or `cpu`."""
    store: Any
    """What all can write into and read; a new one for each start."""
    control: Any
    """The group of all processes, over gloo."""
    patience: float
    """Seconds that ranks wait for each other."""
    grace: float = 10.0
    """Seconds in which all ranks learn that one has failed."""

    def arranged(self, shards: int, replicas: int) -> Ranks:
        """The processes as a mesh; raises `UserError` where their number is another."""
        if shards * replicas != self.size:
            raise UserError(
                f"{shards} shards times {replicas} replicas are {shards * replicas} processes, and torchrun started "
                f"{self.size}; give --shards and --replicas whose product is that"
            )
        mesh = torch.arange(self.size).view(replicas, shards)
        ranks = Ranks.on(mesh, timedelta(seconds=self.patience), None, self.control)
        assert ranks is not None
        return ranks

    def leave(self) -> None:
        """Take leave of the others, who need this rank no more."""
        dist.destroy_process_group()

    # ---- failures ------------------------------------------------------------------------------

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block a rank that has ended, or does not answer, is a `UserError` that names it."""
        over = threading.Event()
        answering = threading.Thread(target=self._answer, args=(over,), daemon=True)
        answering.start()
        try:
            yield
        except (dist.DistError, RuntimeError) as error:
            if not (isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "peer"))):
                raise
            missing = ", ".join(map(str, self._missing())) or "one that has failed by now"
            raise UserError(
                f"rank {missing} was ended, or has not answered for {duration(self.patience)}; begin again, and it "
                "goes on from the last checkpoint"
            ) from error
        finally:
            over.set()
            answering.join()

    def _missing(self) -> list[int]:
        """The ranks whose process does not answer; where all do, those that do not notice that something is wrong.

        A rank that waits for one that waits for the missing one answers, and notices nothing.
        """
        others = list(range(self.size))
        with suppress(RuntimeError):  # the store has gone, and with it the rank that held it
            self.store.set(f"noticed/{self.rank}", "yes")
            self.store.set("who is there", "?")
            until = time.monotonic() + self.grace
            while others and time.monotonic() < until:
                time.sleep(0.1)
                others = [rank for rank in others if not self.store.check([f"noticed/{rank}"])]
            return [rank for rank in others if not self.store.check([f"answered/{rank}"])] or others
        return [0]

    def _answer(self, over: threading.Event) -> None:
        """Answer, beside all else that this process does, when a rank asks who is there."""
        with suppress(RuntimeError):  # the store has gone
            while not over.wait(self.grace / 10):
                if self.store.check(["who is there"]):
                    self.store.set(f"answered/{self.rank}", "yes")
                    return

    def speaks(self) -> bool:
        """Whether this rank is the one to say that the run has failed: rank 0, unless it lives on, or is no more."""
        with suppress(RuntimeError):
            until = time.monotonic() + (self.grace if self.rank else 0.0)
            while time.monotonic() < until and not self.store.add("said", 0):
                time.sleep(0.1)
            return self.store.add("said", 1) == 1
        return False


def join(device: str | None, environment: Mapping[str, str] = os.environ, *, patience: float = 300.0) -> World:
    """The processes that `torchrun` started, this one among them; they wait `patience` seconds for each other.

    Every start gets a store of its own: in one that was left by an earlier start of the same `torchrun`, ranks find the
    addresses of processes that have ended, and wait (pytorch#135712).
    """
    wrong = [name for name in ("RANK", "WORLD_SIZE", "MASTER_PORT") if not environment.get(name, "").isdecimal()]
    wrong += [] if environment.get("MASTER_ADDR") else ["MASTER_ADDR"]
    if wrong:
        raise UserError(
            f"WORLD_SIZE says that this is one of several processes, and {', '.join(wrong)} is missing or no number; "
            "start them with torchrun, which sets all of these, or unset WORLD_SIZE"
        )
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    device = _device_of(rank, device, environment)
    cuda, wait = device.startswith("cuda"), timedelta(seconds=patience)
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    is_server = rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        server = dist.TCPStore(address, port, size, is_server, timeout=wait, multi_tenant=True)
        store = dist.PrefixStore(f"start {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", server)
        how = {"store": store, "rank": rank, "world_size": size, "timeout": wait}
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", **how)
        control = dist.new_group(backend="gloo", timeout=wait)
    except RuntimeError as error:  # a `DistError` is one
        raise UserError(
            f"rank {rank} has not met all of {size} processes at {address}:{port} within {duration(patience)} "
            f"({str(error).splitlines()[0]}); start all of them, or give a longer --patience"
        ) from error
    return World(rank, size, device, store, control, patience)


def _device_of(rank: int, device: str | None, environment: Mapping[str, str]) -> str:
    """The device of a rank: its GPU, by default where there is one, or the CPU; raises `UserError` for others."""
    kind = (device or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UserError(f"processes of torchrun train on CUDA or on the CPU; --device {device} is for one process")
    if kind == "cpu":
        return kind
    local = environment.get("LOCAL_RANK") or str(rank % max(1, torch.cuda.device_count()))
    name = usable(f"cuda:{local}")
    torch.cuda.set_device(name)
    return name


def fewest_latents(shards: int, n_latents: int) -> int:
    """How many of the latents the rank has that has the fewest."""
    return min(len(Ranks(shards).latents(n_latents, shard)) for shard in range(shards))


def default_shards(size: int, n_latents: int, batch: int, k: int = 1) -> int:
    """Over how many of so many ranks latents are spread; the others are replicas.

    All, unless a replica would see more than 2 n_latents / shards tokens a step: then adding up the gradients of
    weights moves fewer bytes than exchanging rows. And no more than there are blocks of latents, of which each
    rank has k.
    """
    for replicas in (number for number in range(1, size + 1) if size % number == 0 and batch % number == 0):
        shards = size // replicas
        enough = n_latents >= BLOCK * shards and fewest_latents(shards, n_latents) >= k
        if enough and batch * shards <= 2 * n_latents * replicas:
            return shards
    return 1


# ---- what ranks have in common ---------------------------------------------------------------------


def everywhere(ranks: Ranks | World, value: T) -> list[T]:
    """What each rank has, by rank."""
    if ranks.size == 1:
        return [value]
    values: list[Any] = [None] * ranks.size
    dist.all_gather_object(values, value, ranks.control)
    return values


def of_other_shards(ranks: Ranks, value: T) -> list[T]:
    """What each other rank has that sees the same tokens."""
    first = ranks.rank - ranks.shard
    values = everywhere(ranks, value)
    return [values[rank] for rank in range(first, first + ranks.shards) if rank != ranks.rank]


def of_first(ranks: Ranks | World, value: T) -> T:
    """What rank 0 has; plain values and tensors on a CPU."""
    if ranks.size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, group=ranks.control, group_src=0)
    return values[0]


def check_same(ranks: Ranks, **values: str) -> None:
    """Raise `UserError`, on every rank, where they differ in one of these."""
    by_rank = everywhere(ranks, values)
    for name, value in by_rank[0].items():
        for rank, other in enumerate(by_rank):
            if other[name] != value:
                raise UserError(f"rank {rank} has another {name} than rank 0; give all ranks the same files")


def largest(ranks: Ranks, *numbers: int) -> list[int]:
    """Of each number the largest that a rank has."""
    if ranks.size == 1:
        return [*numbers]
    both = torch.tensor(numbers)
    dist.all_reduce(both, dist.ReduceOp.MAX, ranks.control)
    return both.tolist()
