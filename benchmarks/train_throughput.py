"""Our training step beside those of other packages: speed, quality, and all layers of a language model.

    python benchmarks/train_throughput.py                 vectors per second of the whole step
    python benchmarks/train_throughput.py --quality       FVU and dead latents at equal data
    python benchmarks/train_throughput.py --all-layers    six layers, the language model included

The others are measured where an interpreter that has them is given: `--python-rivals` one with
eai-sparsify and dictionary-learning, `--python-saelens` one with sae-lens (which wants transformer-lens < 4).
Every contestant has its own process; they take turns, round by round, while the rest wait, so that what
else the machine does strikes all alike. Vectors per processor second at one thread is the figure that
holds on a machine that is not idle. `--quick` runs all of it at a size that shows only that it works;
`--record` appends what is printed to RESULTS.md.
"""

import argparse
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from all_layers import PYTHIA_70M, TRAINERS, LayersJob, write_model
from contestants import ENTRIES, FLOAT32, LIMIT, OURS, Job
from vectors import planted, storybook, write_splits
from worker import Worker

from sae_core.evaluation.reconstruction import fvu
from sae_core.seeds import generator_for

RATES = (3e-4, 1e-3, 3e-3, 8e-3)
SEEDS = (0, 1, 2)
EQUAL = 0.005
"""FVU no further apart than this counts as equal."""
WITH_ADAM = (OURS, "sparsify", "dictionary-learning", "SAELens")


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
QUICK_SHAPES = (Shape(64, 512, 256, 16), Shape(64, 1024, 256, 16))


class Report:
    """Lines of Markdown, printed as they come and kept for the record."""

    def __init__(self):
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)

    def table(self, head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        rows = [tuple(head), *(tuple(row) for row in rows)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        for line in ("", *lines, ""):
            self.say(line)


class Field:
    """Who takes part, and where each one's interpreter is."""

    def __init__(self, pythons: Mapping[str, str | None], folder: Path, report: Report):
        self.pythons, self.folder, self.report = pythons, folder, report
        self.versions: dict[str, str] = {}

    def open(self, stack: ExitStack, entries: Mapping[str, object], threads: int) -> dict[str, Worker]:
        """A worker for each that is installed; says once which are not."""
        found = {}
        for name, entry in entries.items():
            python = self.pythons[entry.environment]
            if python is None:
                self._absent(name, f"not installed: no --python-{entry.environment}")
                continue
            log = self.folder / f"{name.replace(' ', '-')}.log"
            worker = stack.enter_context(Worker(name, python, threads, log))
            answer = worker.ask("hello", package=entry.package)
            if "missing" in answer:
                self._absent(name, f"not installed: {answer['missing']}")
                continue
            self.versions[name], found[name] = answer["version"], worker
        return found

    def _absent(self, name: str, why: str) -> None:
        if self.versions.setdefault(name, "") != why:
            self.versions[name] = why
            self.report.say(f"{name}: {why}")


# ---- speed --------------------------------------------------------------------------------------------


def speed(field: Field, shapes: Iterable[Shape], *, rounds: int, vectors: int, device: str) -> None:
    """Vectors per second of each contestant at each shape: processor time at one thread, wall clock at two."""
    report, shapes = field.report, list(shapes)
    for threads, clock in ((1, "cpu"), (2, "wall")):
        with ExitStack() as stack:
            workers = field.open(stack, ENTRIES, threads)
            for shape in shapes:
                job = _timing_job(field.folder, shape, device)
                for worker in workers.values():
                    worker.ask("open", job=asdict(job), threads=threads)
                    worker.ask("steps", count=2)  # memory, the optimiser's state, the bias at the start
                rates = _rounds(workers, rounds, max(1, vectors // shape.batch), shape.batch, clock)
                unit = "vectors per CPU second" if clock == "cpu" else "vectors per second"
                report.say(f"### {shape}, {threads} thread{'s' * (threads > 1)}, {unit}")
                _speed_table(report, field.versions, rates, shape)
                if clock == "cpu" and device == "cpu":
                    parts = workers[OURS].ask("shares", count=max(2, vectors // shape.batch))
                    report.say("Our step: " + ", ".join(f"{part} {share:.0%}" for part, share in parts.items()) + ".")
                    report.say()


def _timing_job(folder: Path, shape: Shape, device: str) -> Job:
    """A run on planted vectors that stays the same for all shapes of one width."""
    path = folder / f"planted-{shape.d_in}.safetensors"
    if not path.exists():
        x, _ = planted(shape.d_in, 8 * shape.d_in, 32, 2**14 + 2, generator=generator_for(0, "vectors", shape.d_in))
        write_splits(path, x, 1)
    return Job(str(path), shape.n_latents, shape.k, shape.batch, device=device)


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
    middle = {name: statistics.median(own) for name, own in rates.items()}
    fastest = max((name for name in rates if name not in (OURS, FLOAT32, LIMIT)), key=middle.get, default=None)
    rows = []
    for name, own in rates.items():
        rows.append(
            (
                name if name in (OURS, FLOAT32, LIMIT) else f"{name} {versions[name]}",
                f"{middle[name]:.0f}",
                f"{min(own):.0f}-{max(own):.0f}",
                f"{middle[name] / middle[LIMIT]:.2f}",
                f"{middle[name] / middle[fastest]:.2f}" if fastest and name != LIMIT else "",
            )
        )
    report.table(("contestant", "median", "range", "of the limit", "times fastest rival"), rows)
    flop = 2 * shape.d_in * shape.n_latents
    giga, best = (flop * rate / 1e9 for rate in (middle[LIMIT], max(rates[LIMIT])))
    line = f"The encoder's matmul ran at {giga:.0f} GFLOP/s (best {best:.0f})."
    if fastest:
        each = [ours / other for ours, other in zip(rates[OURS], rates[fastest], strict=True)]
        line += f" Ours against {fastest}, round by round: {min(each):.2f}-{max(each):.2f}, "
        line += f"median {statistics.median(each):.2f}."
    report.say(line)


# ---- quality ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Data:
    """What quality is measured on."""

    title: str
    job: Job
    features: torch.Tensor | None
    """The directions that made the vectors, where they are known; the most frequent first."""


@dataclass(frozen=True)
class Outcome:
    """One finished run."""

    validation: float
    test: float
    """FVU."""
    dead: int
    """Latents that no vector of the test split activates."""
    recovered: float
    """Mean of the largest cosine with a direction, over the 200 most frequent features; a third by chance."""


def quality(field: Field, data: Iterable[Data]) -> None:
    """FVU and dead latents of each contestant with Adam at its best of the learning rates, over three seeds."""
    from concurrent.futures import ThreadPoolExecutor

    entries = {name: ENTRIES[name] for name in WITH_ADAM}
    with ExitStack() as stack:
        workers = field.open(stack, entries, threads=1)
        for one in data:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                running = {name: pool.submit(_tuned, worker, one) for name, worker in workers.items()}
            _quality_table(field, one, {name: run.result() for name, run in running.items()})


def _tuned(worker: Worker, data: Data) -> tuple[dict[float, Outcome], list[Outcome]]:
    """Outcomes by learning rate with the first seed, and those of all seeds at the rate best on validation."""
    by_rate = {rate: _run(worker, replace(data.job, lr=rate, seed=SEEDS[0]), data) for rate in RATES}
    best = min(by_rate, key=lambda rate: by_rate[rate].validation)
    rest = [_run(worker, replace(data.job, lr=best, seed=seed), data) for seed in SEEDS[1:]]
    return by_rate, [by_rate[best], *rest]


def _run(worker: Worker, job: Job, data: Data) -> Outcome:
    worker.ask("open", job=asdict(job), threads=1)
    _, _, start = _measure(worker, job, "validation", data)
    if start > 0.6:  # one of 2,048 random directions in 128 dimensions has a cosine of about a third
        raise RuntimeError(f"{worker.name} starts from the features that it is to find (mean cosine {start:.2f})")
    worker.ask("steps", count=job.steps)
    validation, _, _ = _measure(worker, job, "validation", data)
    return Outcome(validation, *_measure(worker, job, "test", data))


def _measure(worker: Worker, job: Job, split: str, data: Data) -> tuple[float, int, float]:
    """(FVU, dead latents, features recovered) on a split, by one formula for all."""
    from safetensors.torch import load_file

    out = Path(job.data).with_name(f"{worker.name.replace(' ', '-')}.safetensors")
    worker.ask("reconstruct", split=split, out=str(out))
    found, x = load_file(out), load_file(job.data)[split]
    recovered = float("nan")
    if data.features is not None:
        rows = torch.nn.functional.normalize(found["directions"], dim=-1)
        recovered = (data.features[:200] @ rows.T).amax(1).mean().item()
    return fvu(x, found["x_hat"]), int((~found["active"]).sum()), recovered


def _quality_table(field: Field, data: Data, runs: Mapping[str, tuple[dict[float, Outcome], list[Outcome]]]) -> None:
    report, rows, means = field.report, [], {}
    for name, (by_rate, final) in runs.items():
        means[name] = statistics.mean(outcome.test for outcome in final)
        best = min(by_rate, key=lambda rate: by_rate[rate].validation)
        rows.append(
            (
                name if name == OURS else f"{name} {field.versions[name]}",
                " ".join(f"{by_rate[rate].validation:.4f}" for rate in RATES),
                f"{best:g}",
                f"{means[name]:.4f}",
                " ".join(f"{outcome.test:.4f}" for outcome in final),
                f"{statistics.mean(outcome.dead for outcome in final) / data.job.n_latents:.1%}",
                "" if data.features is None else f"{statistics.mean(outcome.recovered for outcome in final):.3f}",
            )
        )
    report.say(f"### {data.title}")
    rates = " ".join(f"{rate:g}" for rate in RATES)
    head = (f"validation FVU at {rates}", "chosen", "test FVU", "by seed", "dead", "mean max cosine")
    report.table(("contestant", *head), rows)
    rivals = {name: mean for name, mean in means.items() if name != OURS}
    if OURS in means and rivals:
        best = min(rivals, key=rivals.get)
        gap = means[OURS] - rivals[best]
        verdict = "equal" if abs(gap) <= EQUAL else "better" if gap < 0 else "worse"
        report.say(f"Ours against the best rival, {best}: {gap:+.4f} ({verdict}; within {EQUAL} counts as equal).")
        report.say()


def planted_data(folder: Path, *, rows: int, held_out: int) -> Data:
    """1,024 features in 128 dimensions, about 10 active at a time."""
    x, features = planted(128, 1024, 10, rows + 2 * held_out, generator=generator_for(0, "quality"))
    path = folder / "quality-planted.safetensors"
    write_splits(path, x, held_out)
    job = _training_job(path, Shape(128, 2048, 512, 32), rows)
    return Data(_title("planted features: d=128, 1,024 features", job, rows, held_out), job, features)


def storybook_data(folder: Path, *, rows: int, held_out: int) -> Data:
    """The bundled model at resid_post.2."""
    path = folder / "quality-storybook.safetensors"
    write_splits(path, storybook(2, rows + 2 * held_out), held_out)
    job = _training_job(path, Shape(128, 1024, 512, 16), rows)
    return Data(_title("storybook at resid_post.2: d=128", job, rows, held_out), job, None)


def _training_job(path: Path, shape: Shape, rows: int) -> Job:
    """One pass over the vectors; a latent is dead after a fifth of them."""
    steps, dead = rows // shape.batch, max(1, rows // 5)
    return Job(str(path), shape.n_latents, shape.k, shape.batch, steps, warm_up=min(20, steps // 4), dead_after=dead)


def _title(what: str, job: Job, rows: int, held_out: int) -> str:
    return f"{what}, n={job.n_latents} k={job.k}, {rows} vectors in batches of {job.batch}, {held_out} held out"


# ---- all layers ---------------------------------------------------------------------------------------


def all_layers(field: Field, *, n_contexts: int, n_ctx: int, batch_contexts: int, rounds: int, **size: int) -> None:
    """Tokens per second of training dictionaries of four times the width at all layers."""
    from safetensors.torch import save_file

    report, shape = field.report, PYTHIA_70M | size
    folder, tokens = field.folder / "model", field.folder / "tokens.safetensors"
    write_model(folder, **shape)
    ids = torch.randint(2, shape["vocab_size"], (n_contexts, n_ctx), generator=generator_for(0, "tokens"))
    save_file({"tokens": ids}, tokens)
    n_latents = 4 * shape["hidden_size"]
    job = LayersJob(str(folder), str(tokens), n_contexts, n_latents, 32, batch_contexts)
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        workers = field.open(stack, TRAINERS, threads=1)
        for _ in range(rounds):
            for name, worker in workers.items():
                steps = max(1, round(TRAINERS[name].share * n_contexts / batch_contexts))
                part = replace(job, n_contexts=steps * batch_contexts)
                took = worker.ask("layers", run=asdict(part), threads=1)
                rates.setdefault(name, []).append(took["tokens"] / took["cpu"])
                print(f"{name}: {took['tokens']} tokens in {took['cpu']:.1f} CPU seconds", file=sys.stderr)
    middle = {name: statistics.median(own) for name, own in rates.items()}
    report.say(
        f"### {shape['num_hidden_layers']} layers of width {shape['hidden_size']}, n={n_latents} each, k=32, "
        f"{batch_contexts} contexts of {n_ctx} tokens per step, 1 thread, tokens per CPU second"
    )
    report.table(
        ("contestant", "median", "range", "ours against it"),
        (
            (
                f"{name} {field.versions[name]}" if TRAINERS[name].environment != "own" else name,
                f"{middle[name]:.0f}",
                f"{min(own):.0f}-{max(own):.0f}",
                f"{middle[OURS] / middle[name]:.2f}",
            )
            for name, own in rates.items()
        ),
    )


# ---- the command --------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quality", action="store_true", help="FVU and dead latents instead of speed")
    mode.add_argument("--all-layers", action="store_true", help="all layers of a language model, it included")
    parser.add_argument("--python-rivals", metavar="PYTHON", help="interpreter with eai-sparsify, dictionary-learning")
    parser.add_argument("--python-saelens", metavar="PYTHON", help="interpreter with sae-lens")
    parser.add_argument("--rounds", type=int, help="turns of each contestant (default: 5; 2 for all layers)")
    parser.add_argument("--vectors", type=int, help="vectors per turn (4096), or to train on for quality (200000)")
    parser.add_argument("--shapes", nargs="+", metavar="d,n,batch", help="shapes to time instead of the usual five")
    parser.add_argument("--device", default="cpu", help="where to time steps; on a GPU read the wall clock")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    parser.add_argument("--record", action="store_true", help="append the figures to RESULTS.md")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    options, report, started = build_parser().parse_args(arguments), Report(), time.time()
    load = os.getloadavg()[0]
    pythons = {"own": sys.executable, "rivals": options.python_rivals, "saelens": options.python_saelens}
    with tempfile.TemporaryDirectory() as folder:
        field = Field(pythons, Path(folder), report)
        if options.quality:
            rows = options.vectors or (5_000 if options.quick else 200_000)
            sizes = {"rows": rows, "held_out": 1_000 if options.quick else 20_000}
            quality(field, (make(field.folder, **sizes) for make in (planted_data, storybook_data)))
        elif options.all_layers and options.quick:
            small = {"vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
            all_layers(field, n_contexts=20, n_ctx=32, batch_contexts=4, rounds=options.rounds or 1, **small)
        elif options.all_layers:
            all_layers(field, n_contexts=160, n_ctx=128, batch_contexts=16, rounds=options.rounds or 2)
        else:
            shapes = [Shape(*map(int, text.split(","))) for text in options.shapes or ()]
            usual, rounds, vectors = (QUICK_SHAPES, 2, 512) if options.quick else (SHAPES, 5, 4096)
            counts = {"rounds": options.rounds or rounds, "vectors": options.vectors or vectors}
            speed(field, shapes or usual, **counts, device=options.device)
    minutes = (time.time() - started) / 60
    report.say(f"{minutes:.1f} minutes; load average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end.")
    if options.record:
        record(Path(__file__).with_name("RESULTS.md"), report, sys.argv[1:] if arguments is None else arguments)
    return 0


def record(path: Path, report: Report, arguments: list[str], *, script: str = "train_throughput.py") -> None:
    """Append a section: date, machine, versions, command, figures."""
    head = "" if path.exists() else "# Results\n\nWritten by `--record`; newest last.\n"
    shown = [f"PYTHON{number}" if Path(a).is_file() else a for number, a in enumerate(arguments)]
    facts = (
        f"## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "",
        f"- machine: {_processor()}, {os.cpu_count()} cores, {_vector_unit()}",
        f"- torch {torch.__version__}, Python {platform.python_version()}",
        f"- command: `python benchmarks/{script} {shlex.join(shown)}`",
        "",
    )
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join((head, *facts, *report.lines, "")))


def _processor() -> str:
    source = Path("/proc/cpuinfo")
    lines = source.read_text().splitlines() if source.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _vector_unit() -> str:
    return torch.backends.cpu.get_cpu_capability()


if __name__ == "__main__":
    raise SystemExit(main())
