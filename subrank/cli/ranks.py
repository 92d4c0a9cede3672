"""The processes that `torchrun` starts for one command: they form one run, and rank 0 alone prints and writes."""

import argparse
import os
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_core.model.language_model import LanguageModel
    from sae_core.sharding.control import World
    from sae_core.sharding.ranks import Ranks
    from sae_core.training.run import Run


def is_several() -> bool:
    """Whether this process is one of several: by `WORLD_SIZE`; a shell may hold `RANK` for other reasons."""
    size = os.environ.get("WORLD_SIZE", "1")
    return size.isdecimal() and int(size) > 1


def is_first() -> bool:
    """Whether this is rank 0, or the only process."""
    return not is_several() or os.environ.get("RANK", "0") == "0"


def restarted() -> bool:
    """Whether `torchrun` started this process in the place of one that had ended."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def joined(options: argparse.Namespace) -> "World | None":
    """All processes of this command, in which this one is from now on silent unless it is the first; None: it is alone.

    Until the verb ends, one of them that fails is named, by one of those that are left.
    """
    if not is_several():
        return None
    from sae_core.sharding.control import join

    world = join(options.device, patience=options.patience)
    options.device, options.speaks = world.device, world.speaks
    if world.rank:
        nowhere = options.at_end.enter_context(open(os.devnull, "w"))  # noqa: SIM115
        options.at_end.enter_context(redirect_stdout(nowhere))
        options.at_end.enter_context(redirect_stderr(nowhere))
    options.at_end.enter_context(world.watched())
    return world


def arranged(world: "World | None", options: argparse.Namespace, model: "LanguageModel", run: "Run") -> "Ranks":
    """The processes as --shards and --replicas have it, or as fits the run; raises `UserError` where they cannot be."""
    from sae_core.errors import UserError
    from sae_core.sharding.control import default_shards, fewest_latents
    from sae_core.sharding.ranks import ALONE, BLOCK
    from sae_core.training.recipe import check_k
    from subrank.sites import sites_of

    shards, replicas = options.shards, options.replicas
    if world is None:
        if (shards or 1) * (replicas or 1) > 1:
            n = (shards or 1) * (replicas or 1)
            raise UserError(
                f"--shards and --replicas need {n} processes: torchrun --nproc-per-node {n} -m subrank train"
            )
        return ALONE
    if any(member.kl for member in run.members):
        raise UserError("--kl trains in one process; leave it out, or run without torchrun")
    batch, widths = run.members[0].batch, [model.d_in(site) for site in sites_of(model, run.sites)]
    sizes = [(member.expansion * min(widths), getattr(member.recipe, "k", 1)) for member in run.members]
    for n_latents, k in sizes:
        check_k(k, n_latents)
    if batch % world.size:
        raise UserError(f"--batch {batch} cannot be divided among {world.size} processes; give a multiple of that")
    if shards is None and replicas is None:
        shards = min(default_shards(world.size, n_latents, batch, k) for n_latents, k in sizes)
    elif shards is None:
        shards = world.size // replicas
    for n_latents, k in sizes:
        if n_latents >= BLOCK * shards and (fewest := fewest_latents(shards, n_latents)) < k:
            most = next(number for number in range(shards, 0, -1) if fewest_latents(number, n_latents) >= k)
            raise UserError(
                f"in {shards} shards of {n_latents} latents one has {fewest}, fewer than the k={k} active ones; give "
                f"fewer --shards: {most}"
            )
    return world.arranged(shards, replicas or max(1, world.size // shards))
