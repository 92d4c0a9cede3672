"""Whole runs over ranks, on planted rows: where they begin, what they read, what they leave, and how they go on."""

import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from planted import Planted, generator, planted_directions
from ranked import meshes
from torch import Tensor
from trained import EVERY, config, memory, same

from sae_core.data.activation_cache import CachedStream
from sae_core.data.activations import ActivationStream
from sae_core.data.text import Text
from sae_core.seeds import generator_for
from sae_core.sharding.control import World, check_same, everywhere, largest, of_first
from sae_core.sharding.ranks import ALONE, Ranks
from sae_core.sharding.stream import SharedStream
from sae_core.sharding.weights import untrained, whole
from sae_core.sites import Site, Stream
from sae_core.training.checkpoint import load_checkpoint, save_checkpoint
from sae_core.training.loop import start, train
from sae_core.training.state import TrainState
from sae_core.training.topk_recipes import TopK

SITE, CPU = Site(0), torch.device("cpu")
STEPS, STOP = 36, 33
"""Some latents are dead at the stop."""
CHANGES = {"R=4": ("R=2", "R=1"), "D=2 R=2": ("R=1",)}
"""From which ranks to which others."""
MEMBERS = [
    config(recipe, expansion=6, steps=STEPS)
    for recipe in (TopK(2, multi=1 / 8), EVERY["matryoshka"], EVERY["jumprelu"])
]


def stream() -> Planted:
    return Planted(planted_directions(40, 16).double(), (SITE,), batch=64, batches=5)


@dataclass(frozen=True)
class Reader:
    """In the place of a language model: the activation of a token is a row of a table, by the tokens before it."""

    name: str = "reader"
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU

    def fingerprint(self) -> str:
        return "fingerprint"

    def content(self, tokens: Tensor) -> Tensor:
        return tokens % 7 != 0

    def d_in(self, site: Site) -> int:
        return 16 + site.layer

    def offered(self, stream: Stream) -> list[Site]:
        return [Site(0), Site(2)]

    def at_once(self, most: int) -> int:
        return most

    def record(self, tokens: Tensor, sites: tuple[Site, ...]) -> dict[Site, Tensor]:
        tables = {site: torch.randn(1000, self.d_in(site), generator=generator(site.layer)) for site in sites}
        size = 1 + (tokens % 50 == 0) * 30.0  # outliers
        return {site: size[..., None] * table[tokens.cumsum(-1) % 1000] for site, table in tables.items()}


def reading() -> ActivationStream:
    contexts = torch.randint(0, 300, (50, 12), generator=generator())
    return ActivationStream(Reader(), contexts, (Site(0), Site(2)), 3, 32, budget=2**16, at_once=3)


def batches_are_those_of_one_process(ranks: Ranks, cache: Path) -> dict[str, bool]:
    limits, equal = {Site(0): 40.0, Site(2): 45.0}, {}
    for name, how in {
        "whole": (0, limits),
        "no limits": (1, {}),
        "last": (2, limits, 2),
        "first again": (0, {}),
    }.items():
        alone, together = [*reading().block(*how)], [*SharedStream(reading(), ranks).block(*how)]
        equal[name] = len(alone) == len(together) > 1 and all(map(same_rows, alone, together))
        if ranks.size == 4:
            cached = CachedStream(reading(), cache)
            if ranks.rank == 0:
                cached.fill(how[0])
            of_first(ranks, 0)  # it is there for all
            together = [*SharedStream(cached, ranks).block(*how)]
            equal[f"{name}, kept"] = len(alone) == len(together) and all(map(same_rows, alone, together))
    return equal


def same_rows(a: dict[Site, Tensor], b: dict[Site, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[site], b[site]) for site in a)


def weights_are_those_of_one_process(ranks: Ranks) -> dict[str, bool]:
    """To the bit; for 203 latents, which no number of ranks divides."""
    equal = {}
    for name, recipe in EVERY.items():
        sae = recipe.new(24, 203, generator=generator_for(5, "init"))
        part = untrained(recipe.new, 24, 203, generator=generator_for(5, "init"), ranks=ranks)
        back = whole(part, 203, ranks)
        equal[name] = back is None or all(
            torch.equal(x, back.get_parameter(name)) for name, x in sae.named_parameters()
        )
    return equal


def finished_as_in_one_process(ranks: Ranks) -> dict[str, bool]:
    """To the bit on the first rank, nothing elsewhere; no random numbers are drawn."""
    members = [config(recipe, expansion=6, steps=STEPS) for recipe in EVERY.values()]
    alone, state = start(stream(), *members), start(stream(), *members, ranks=ranks)
    equal = {}
    for name, member, other in zip(EVERY, state.members, alone.members, strict=True):
        member.sites[SITE].scale = other.sites[SITE].scale  # a sum in another order
        with patch.object(torch, "randn", side_effect=AssertionError("drawn")) if name != "tied" else nullcontext():
            finished = member.dictionaries()
        expected = other.dictionaries()[SITE]
        equal[name] = not finished if ranks.rank else same(expected.state_dict(), finished[SITE].state_dict())
        equal[f"{name}, other class"] = bool(ranks.rank) or type(finished[SITE]) is type(expected)
    return equal


def taken(state: TrainState, until: int) -> TrainState:
    for step in train(stream(), state):
        if step.step == until:
            break
    return state


def distance(state: TrainState, expected: TrainState) -> float:
    """The largest difference of a weight or a counter of this rank from that of one process."""
    far = 0.0
    for member, other in zip(state.members, expected.members, strict=True):
        mine, reference = member.sites[SITE], other.sites[SITE]
        here = state.ranks.latents(reference.n_latents)
        for name, parameter in reference.sae.named_parameters():
            part = parameter if name == "b_dec" else parameter.T if name == "W_enc" else parameter
            part = part if name == "b_dec" else part[here.start : here.stop]
            value = mine.sae.get_parameter(name)
            far = max(far, (part - (value.T if name == "W_enc" else value)).abs().max().item())
        silent = state.ranks.least_of_replicas(mine.silent)
        far = max(far, (silent - reference.silent[here.start : here.stop]).abs().max().item())
        far = max(far, abs(len(mine.dead) + mine.dead_elsewhere - len(reference.dead)))
    return far


def work(rank: int, folder: Path) -> dict[str, dict]:
    places, results = meshes(), {}
    for mesh, ranks in places.items():
        results[f"{mesh}/batches"] = batches_are_those_of_one_process(ranks, folder / "cache")
        results[f"{mesh}/weights"] = weights_are_those_of_one_process(ranks)
        results[f"{mesh}/finished"] = finished_as_in_one_process(ranks)
    alone = taken(start(stream(), *MEMBERS), STEPS)
    results["dead"] = {str(len(member.sites[SITE].dead)): True for member in alone.members}
    for mesh in CHANGES:
        ranks, out = places[mesh], folder / mesh
        state = taken(start(stream(), *MEMBERS, ranks=ranks), STOP)
        save_checkpoint(state, Text("storybook", 12, True), Reader(), out, contexts="abc")
        of_first(ranks, 0)  # it is there for all
        again = load_checkpoint(out, device=CPU, ranks=ranks)
        results[f"{mesh}/read back"] = {"all": same(memory(state), memory(again))}
        results[f"{mesh}/straight"] = {"distance": distance(taken(state, STEPS), alone)}
        results[f"{mesh}/again"] = {"all": same(memory(taken(again, STEPS)), memory(state))}
        for other in CHANGES[mesh]:
            place = places.get(other, ALONE)
            more = taken(load_checkpoint(out, device=CPU, ranks=place), STEPS)
            results[f"{mesh} to {other}"] = {"distance": distance(more, alone)}
    return results


def limit_of(group: dist.ProcessGroup) -> float:
    """Seconds that its ranks wait for each other."""
    return group._get_backend(CPU).options._timeout.total_seconds()


def talk(rank: int) -> dict[str, object]:
    ranks = meshes()["R=4"]
    said = {
        "largest": largest(ranks, rank, -rank),
        "first": of_first(ranks, f"rank {rank}"),
        "all": everywhere(ranks, rank),
    }
    check_same(ranks, text="same")
    place = World(rank, 4, "cpu", None, ranks.control, 7.0).arranged(2, 2)
    groups = {"shards": place.shard_group, "replicas": place.replica_group}
    said |= {name: (dist.get_process_group_ranks(group), limit_of(group)) for name, group in groups.items()}
    try:
        check_same(ranks, model="same", text="another" if rank == 2 else "same")
    except ValueError as error:
        said["error"] = str(error)
    return said


def endless(rank: int) -> dict[str, object]:
    """Rank 1 never ends, and rank 0 does not wait for it."""
    if rank == 0:
        os._exit(0)
    time.sleep(600)
    return {}
