"""Would dictionaries of equal shape train faster as one batched product? `python benchmarks/batched_products.py`

The encoder's product is most of a step, and all that batching could speed up: the rest is sparse. So time
six encoders one after the other against one batched product of six, alternating, and print the ratio. Where
it stays near 1 or below, members and sites train one after the other, as `sae_core/training/loop.py` does.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def ratio(
    n_members: int, batch: int, d_in: int, n_latents: int, dtype: torch.dtype, rounds: int
) -> tuple[float, float]:
    """(median seconds apart / median seconds batched, median milliseconds apart)."""
    x = torch.randn(n_members, batch, d_in).to(dtype)
    weights = torch.randn(n_members, n_latents, d_in).to(dtype).transpose(1, 2)
    apart, batched = x.new_empty(batch, n_latents), x.new_empty(n_members, batch, n_latents)

    def one_by_one() -> None:
        for rows, weight in zip(x, weights, strict=True):
            torch.mm(rows, weight, out=apart)

    def together() -> None:
        torch.bmm(x, weights, out=batched)

    times = [(seconds(one_by_one), seconds(together)) for _ in range(rounds + 1)][1:]
    alone, both = (statistics.median(column) for column in zip(*times, strict=True))
    return alone / both, 1000 * alone


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("apart / batched > 1 means that batching is faster; six members, one thread, processor time")
    for d_in, n_latents in ((128, 512), (128, 1024), (512, 2048), (512, 4096)):
        for dtype in (torch.float32, torch.bfloat16):
            factor, milliseconds = ratio(6, 1024, d_in, n_latents, dtype, options.rounds)
            print(f"d={d_in} n={n_latents} {str(dtype)[6:]}: {factor:.2f} (apart {milliseconds:.1f} ms)")


if __name__ == "__main__":
    main()
