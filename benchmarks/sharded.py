"""Memory and time of a step whose latents are spread over processes, beside what is predicted.

    torchrun --nproc-per-node 2 benchmarks/sharded.py            # 2^20 latents of 128 dimensions, over gloo
    torchrun --nproc-per-node 8 benchmarks/sharded.py --device cuda --d-in 4096 --latents 1048576 --batch 8192 -k 64

Rows are random: memory and exchange depend on no text. Predicted, for n latents on a rank, in bytes: 32 d n for both
matrices, their moments and gradients; 5 b n for the encoder's product and a key of eight bytes for each group of
eight of its numbers; 24 n for counters and a bias.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_core.outliers import NO_LIMITS
from sae_core.sharding.control import everywhere, join
from sae_core.sites import Site
from sae_core.training.config import TrainConfig
from sae_core.training.loop import start, train
from sae_core.training.topk_recipes import TopK


@dataclass(frozen=True)
class Noise:
    """Normal rows, the same on all ranks."""

    d_in: int
    batch: int
    device: str
    sites: tuple[Site, ...] = (Site(0),)

    def block(self, block: int, limits=NO_LIMITS, steps=None) -> Iterator[dict[Site, Tensor]]:
        for number in range(8):
            generator = torch.Generator().manual_seed(8 * block + number)
            yield {self.sites[0]: torch.randn(self.batch, self.d_in, generator=generator).to(self.device)}


def taken(device: str) -> int:
    """Bytes that this process has held at most."""
    if device == "cpu":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return torch.cuda.max_memory_allocated()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    for name, default in {"--d-in": 128, "--latents": 2**20, "--batch": 256, "-k": 32, "--steps": 5}.items():
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    world = join(options.device)
    ranks = world.arranged(world.size, 1)
    batch, n = options.batch, len(ranks.latents(options.latents))
    stream = Noise(options.d_in, batch, world.device)

    def run(latents: int, steps: int) -> list[float]:
        """Seconds of each step, the first with the start."""
        size = {"expansion": latents // options.d_in, "tokens": steps * batch, "batch": batch}
        begun, seconds = time.monotonic(), []
        state = start(stream, TrainConfig(TopK(options.k), bfloat16=False, **size), ranks=ranks)
        for step in train(stream, state):
            _ = step.outcomes[0][stream.sites[0]].loss.item()
            seconds.append(time.monotonic() - begun)
            begun = time.monotonic()
        return seconds

    run(options.d_in * 4 * world.size, 1)  # what is loaded only once
    before = taken(world.device)
    seconds = run(options.latents, options.steps)
    predicted = 32 * options.d_in * n + 5 * batch * n + 24 * n
    for rank, (measured, of) in enumerate(everywhere(ranks, (taken(world.device) - before, predicted))):
        if ranks.rank == 0:
            print(f"rank {rank}: {measured / 2**30:.3f} GiB, predicted {of / 2**30:.3f} ({measured / of - 1:+.1%})")
    if ranks.rank == 0:
        print(
            f"{options.latents:,} latents of {options.d_in} dimensions, {n:,} on a rank, batch {batch}: "
            f"{statistics.median(seconds):.2f} s per step, the first {seconds[0]:.1f} with the start"
        )


if __name__ == "__main__":
    main()
