"""The training step on one GPU: whether its kernels are right, and how far from the limit each part is.

    python benchmarks/gpu.py                 eight minutes at most; needs torch, and Triton, which comes with it
    python benchmarks/gpu.py --cpu-check     tiny sizes on a CPU: shows that it works, measures nothing

In the order of what matters most, until its clock runs out: the card (bandwidth, products, the encoder's product of
each size, which is the limit), the kernels against float64 and twice to the bit, the whole step at sizes A and C (and
A in batches of 32k), each part beside the time that its bytes take, and what several GPUs need. `--sparsify FOLDER`
puts a folder with the package sparsify and what it imports on the path, and times its step too. `--record` appends to
RESULTS.md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType

import torch
from report import Report, record
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))
try:
    import jaxtyping  # noqa: F401
except ImportError:  # a machine that has torch alone: annotations of shapes are not read

    class _Shape:
        def __class_getitem__(cls, shape: object) -> type[Tensor]:
            return Tensor

    sys.modules["jaxtyping"] = ModuleType("jaxtyping")
    vars(sys.modules["jaxtyping"]).update(Float=_Shape, Int=_Shape, Bool=_Shape)

from gpu_parts import correct, part_times, whole_steps


@dataclass(frozen=True)
class Size:
    """A dictionary and its batches."""

    d: int
    n: int
    k: int
    batch: int


SIZES = {
    "A": Size(4096, 131072, 64, 8192),
    "C": Size(768, 16384, 32, 4096),
    "A 32k": Size(4096, 131072, 64, 32768),
    "B": Size(2304, 65536, 32, 4096),
}
TINY = {"A": Size(40, 256, 4, 64), "C": Size(24, 192, 4, 64)}


class Bench:
    """Where things run, for how long yet, and what has been measured."""

    def __init__(self, device: str, budget: float):
        self.device, self.report, self.failed = torch.device(device), Report(), False
        self._end = time.monotonic() + budget
        self.bandwidth = self.rate = 1.0
        """Bytes and FLOP per second."""
        self.limits: dict[str, float] = {}
        """Seconds of the encoder's product."""

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def median(self, run: Callable[[], object], repeats: int = 20) -> float:
        """Seconds of one run."""
        if self.device.type == "cpu":
            repeats = 2
        for _ in range(3):
            run()
        times = []
        for _ in range(repeats):
            if self.device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end) / 1e3)
            else:
                begun = time.perf_counter()
                run()
                times.append(time.perf_counter() - begun)
        return statistics.median(times)

    @contextmanager
    def part(self, title: str, seconds: float) -> Iterator[bool]:
        """One section: left out where less time is left than it needs, and one that fails does not end the others."""
        self.report.say(f"### {title}")
        try:
            yield self.left > seconds
            if self.left <= seconds:
                self.report.say(f"left out: {self.left:.0f} s of the clock are left")
        except Exception as error:  # the rest is to be measured
            self.failed = True
            self.report.say(f"FAILED: {type(error).__name__}: {error}"[:2000])
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def limits(bench: Bench, sizes: dict[str, Size]) -> None:
    """What the card does: copies, products, and the encoder's product of each size without and with its bias."""
    n = 2**28 if bench.device.type == "cuda" else 2**16
    a, b = (torch.empty(n, device=bench.device) for _ in range(2))
    bench.bandwidth = 8 * n / bench.median(lambda: b.copy_(a))
    side = 8192 if bench.device.type == "cuda" else 64
    square = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    out = torch.empty_like(square)
    bench.rate = 2 * side**3 / bench.median(lambda: torch.mm(square, square, out=out))
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"
    bench.report.say(f"{name}, torch {torch.__version__}: copies {bench.bandwidth / 1e12:.2f} TB/s, ")
    bench.report.say(f"products of {side}^3 in bfloat16 {bench.rate / 1e12:.0f} TFLOP/s")
    rows = []
    for label, size in sizes.items():
        x = torch.randn(size.batch, size.d, device=bench.device, dtype=torch.bfloat16)
        W = torch.randn(size.n, size.d, device=bench.device, dtype=torch.bfloat16)
        bias, pre = W.new_zeros(size.n), W.new_empty(size.batch, size.n)
        bench.limits[label] = plain = bench.median(lambda x=x, W=W, pre=pre: torch.mm(x, W.T, out=pre))
        biased = bench.median(lambda x=x, W=W, pre=pre, bias=bias: torch.addmm(bias, x, W.T, out=pre))
        flop = 2 * size.batch * size.n * size.d
        rows.append((label, str(size), *(f"{1e3 * t:.3f}" for t in (plain, biased)), f"{flop / plain / 1e12:.0f}"))
        del x, W, bias, pre
    bench.report.table(("size", "", "encoder ms", "with bias ms", "TFLOP/s"), rows)


def many_gpus(bench: Bench) -> None:
    """What several GPUs exchange, in a group of one, and that nothing in a step waits."""
    import torch.distributed as dist

    from sae_core.sharding import ranks

    backend = "nccl" if bench.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        x = torch.randn(64, 8, device=bench.device, requires_grad=True)
        halves = x.detach().bfloat16()
        assert ranks.added(x.detach(), None).equal(x) and ranks.exchanged(halves[None], None)[0].equal(halves)
        parts = ranks._ReduceScatter.apply(x, None, 1)
        (gradient,) = torch.autograd.grad(ranks._Total.apply(parts.square().sum(), None), x)
        torch.testing.assert_close(gradient, 2 * x.detach())
        bench.report.say("all_reduce, all_to_all, reduce_scatter and all_gather in a group of one: as they should")
    finally:
        dist.destroy_process_group()


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu-check", action="store_true", help="tiny sizes on a CPU: shows that it works")
    parser.add_argument("--minutes", type=float, default=8.0, help="end within so many minutes (default: 8)")
    parser.add_argument("--sparsify", metavar="FOLDER", help="where sparsify and what it imports lie unpacked")
    parser.add_argument("--record", action="store_true", help="append what is printed to RESULTS.md")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 1 where a section failed."""
    options = build_parser().parse_args(arguments)
    if options.sparsify:
        sys.path.append(options.sparsify)
    device, sizes = ("cpu", TINY) if options.cpu_check else ("cuda", SIZES)
    bench = Bench(device, 60 * options.minutes)
    with bench.part("1. the card", 0):
        limits(bench, sizes)
    with bench.part("3. correctness", 60) as is_time:
        if is_time:
            correct(bench)
    for label in islice(sizes, 3):
        with bench.part(f"4. the whole step, {label}", 40) as is_time:
            if is_time:
                whole_steps(bench, label, sizes[label])
    for label in ("A", "C"):
        with bench.part(f"2. parts, {label}", 40) as is_time:
            if is_time:
                part_times(bench, sizes[label])
    if "B" in sizes:
        with bench.part("4. the whole step, B", 40) as is_time:
            if is_time:
                whole_steps(bench, "B", sizes["B"])
    with bench.part("5. several GPUs", 10) as is_time:
        if is_time:
            many_gpus(bench)
    bench.report.say(f"{bench.left:.0f} s of the clock were left")
    if options.record:
        script = Path(__file__)
        record(script.with_name("RESULTS.md"), bench.report, arguments or sys.argv[1:], script=script.name)
    return int(bench.failed)


if __name__ == "__main__":
    sys.exit(main())
