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


def is_first() -> bool:
    """Whether this is rank 0, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def restarted() -> bool:
    """Whether `torchrun` started this process in the place of one that had ended."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def joined(options: argparse.Namespace) -> "World | None":
    """All processes of this command, in which this one is from now on silent unless it is the first; None: it is alone.

    Until the verb ends, one of them that fails is named, by one of those that are left.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
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
    from sae_core.sharding.control import default_shards
    from sae_core.sharding.ranks import ALONE
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
    n_latents = min(member.expansion * min(widths) for member in run.members)
    if batch % world.size:
        raise UserError(f"--batch {batch} cannot be divided among {world.size} processes; give a multiple of that")
    if shards is None:
        shards = world.size // replicas if replicas else default_shards(world.size, n_latents, batch)
    return world.arranged(shards, replicas or max(1, world.size // shards))
