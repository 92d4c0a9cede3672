"""FVU and dead latents of each contestant's dictionary, at equal data and at its best learning rate."""

import os
import statistics
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from contestants import ENTRIES, OURS
from field import Field
from step_speed import Shape
from training_job import Job
from vectors import activations, planted, write_splits
from worker import Worker

from sae_core.evaluation.reconstruction import fvu
from sae_core.seeds import generator_for

RATES = (3e-4, 1e-3, 3e-3, 8e-3)
SEEDS = (0, 1, 2)
EQUAL = 0.005
"""FVU no further apart than this counts as equal."""
WITH_ADAM = (OURS, "sparsify", "dictionary-learning", "SAELens")


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
        for dataset in data:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                running = {name: pool.submit(_tuned, worker, dataset) for name, worker in workers.items()}
            _quality_table(field, dataset, {name: run.result() for name, run in running.items()})


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
    tensors, x = load_file(out), load_file(job.data)[split]
    recovered = float("nan")
    if data.features is not None:
        rows = torch.nn.functional.normalize(tensors["directions"], dim=-1)
        recovered = (data.features[:200] @ rows.T).amax(1).mean().item()
    return fvu(x, tensors["x_hat"]), int((~tensors["active"]).sum()), recovered


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
    write_splits(path, activations("storybook", "storybook", "resid_post.2", rows + 2 * held_out), held_out)
    job = _training_job(path, Shape(128, 1024, 512, 16), rows)
    return Data(_title("storybook at resid_post.2: d=128", job, rows, held_out), job, None)


def _training_job(path: Path, shape: Shape, rows: int) -> Job:
    """One pass over the vectors; a latent is dead after a fifth of them."""
    steps, dead = rows // shape.batch, max(1, rows // 5)
    return Job(str(path), shape.n_latents, shape.k, shape.batch, steps, warm_up=min(20, steps // 4), dead_after=dead)


def _title(what: str, job: Job, rows: int, held_out: int) -> str:
    return f"{what}, n={job.n_latents} k={job.k}, {rows} vectors in batches of {job.batch}, {held_out} held out"
