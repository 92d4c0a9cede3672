"""Vectors per second of each contestant's training step."""

import statistics
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from contestants import ENTRIES, FLOAT32, LIMIT, OURS
from field import Field
from report import Report
from training_job import Job
from vectors import planted, write_splits
from worker import Worker

from sae_core.seeds import generator_for


@dataclass(frozen=True)
class Shape:
    """What a step is asked to do."""

    d_in: int
    n_latents: int
    batch: int
    k: int = 32

    def __str__(self) -> str:
        return f"d={self.d_in} n={self.n_latents} k={self.k} batch={self.batch}"


SHAPES = (
    Shape(512, 4096, 1024),
    Shape(512, 4096, 4096),
    Shape(512, 16384, 1024),
    Shape(512, 16384, 4096),
    Shape(128, 1024, 1024),
)
ROWS = 2**14 + 2
"""Vectors, the last two of which are held out."""
QUICK_SHAPES = (Shape(64, 512, 256, 16), Shape(64, 1024, 256, 16))


@dataclass(frozen=True)
class Timing:
    """How steps are timed."""

    rounds: int
    vectors: int
    """Per turn."""
    device: str
    kind: str = "topk"
    before: int = 2
    """Steps that are not timed: memory, the optimiser's state, the bias at the start; in kinds with a penalty also
    until our codes are sparse. The others' steps are dense, and take as long at first as later."""
    data: Path | None = None
    """A file of vectors; None for planted ones."""


def speed(field: Field, shapes: Iterable[Shape], timing: Timing) -> None:
    """Vectors per second of each contestant at each shape: processor time at one thread, wall clock at two."""
    report, shapes = field.report, list(shapes)
    entries = {name: entry for name, entry in ENTRIES.items() if timing.kind == "topk" or entry.every_kind}
    for threads, clock in ((1, "cpu"), (2, "wall")):
        with ExitStack() as stack:
            workers = field.open(stack, entries, threads)
            for shape in shapes:
                job = _timing_job(field.folder, shape, timing)
                for name, worker in workers.items():
                    worker.ask("open", job=asdict(job), threads=threads)
                    worker.ask("steps", count=timing.before if name in (OURS, FLOAT32) else 2)
                rates = _rounds(workers, timing.rounds, max(1, timing.vectors // shape.batch), shape.batch, clock)
                unit = "vectors per CPU second" if clock == "cpu" else "vectors per second"
                report.say(f"### {timing.kind}, {shape}, {threads} thread{'s' * (threads > 1)}, {unit}")
                _speed_table(report, field.versions, rates, shape)
                if timing.kind != "topk":
                    active = {name: workers[name].ask("l0")["l0"] for name in workers if name != LIMIT}
                    report.say("L0: " + ", ".join(f"{name} {l0:.0f}" for name, l0 in active.items()) + ".")
                if clock == timing.device == "cpu":
                    parts = workers[OURS].ask("shares", count=max(2, timing.vectors // shape.batch))
                    report.say("Our step: " + ", ".join(f"{part} {share:.0%}" for part, share in parts.items()) + ".")
                    report.say()


def _timing_job(folder: Path, shape: Shape, timing: Timing) -> Job:
    """A run on the vectors given, or on planted ones that stay the same for all shapes of one width."""
    path = timing.data or folder / f"planted-{shape.d_in}.safetensors"
    if not path.exists():
        x, _ = planted(shape.d_in, 8 * shape.d_in, 32, ROWS, generator=generator_for(0, "vectors", shape.d_in))
        write_splits(path, x, 1)
    return Job(str(path), shape.n_latents, shape.k, shape.batch, device=timing.device, kind=timing.kind)


def _rounds(workers: Mapping[str, Worker], rounds: int, count: int, batch: int, clock: str) -> dict[str, list[float]]:
    """Vectors per second in each round. Each round begins with another contestant."""
    rates: dict[str, list[float]] = {name: [] for name in workers}
    names = list(workers)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            steps = 8 * count if name == LIMIT else count  # a turn too short would time the clock
            rates[name].append(steps * batch / workers[name].ask("steps", count=steps)[clock])
    return rates


def _speed_table(report: Report, versions: Mapping[str, str], rates: Mapping[str, list[float]], shape: Shape) -> None:
    middle = {name: statistics.median(speeds) for name, speeds in rates.items()}
    fastest = max((name for name in rates if name not in (OURS, FLOAT32, LIMIT)), key=middle.get, default=None)
    rows = []
    for name, speeds in rates.items():
        rows.append(
            (
                name if name in (OURS, FLOAT32, LIMIT) else f"{name} {versions[name]}",
                f"{middle[name]:.0f}",
                f"{min(speeds):.0f}-{max(speeds):.0f}",
                f"{middle[name] / middle[LIMIT]:.2f}",
                f"{middle[name] / middle[fastest]:.2f}" if fastest and name != LIMIT else "",
            )
        )
    report.table(("contestant", "median", "range", "of the limit", "times fastest rival"), rows)
    flop = 2 * shape.d_in * shape.n_latents
    giga, best = (flop * rate / 1e9 for rate in (middle[LIMIT], max(rates[LIMIT])))
    line = f"The encoder's matmul ran at {giga:.0f} GFLOP/s (best {best:.0f})."
    if fastest:
        each = [subrank_rate / other for subrank_rate, other in zip(rates[OURS], rates[fastest], strict=True)]
        line += f" Ours against {fastest}, round by round: {min(each):.2f}-{max(each):.2f}, "
        line += f"median {statistics.median(each):.2f}."
    report.say(line)
