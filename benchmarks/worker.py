"""One process per contestant, so that all are measured alike: the worker's side and the parent's.

    PYTHON worker.py NAME        reads requests, a line of JSON each, answers each with a line of JSON

A worker that waits is blocked on its standard input and takes no processor time. What packages print goes
to standard error, so that it cannot come between the answers.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

# ---- the worker's side --------------------------------------------------------------------------------


def serve(name: str, requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    bench = Bench(name)
    for line in requests:
        request = json.loads(line)
        answer = getattr(bench, request.pop("do"))(**request)
        print(json.dumps(answer), file=answers, flush=True)


class Bench:
    """What a worker can be asked to do. Every answer is plain values."""

    def __init__(self, name: str):
        self.name, self.contestant, self.job = name, None, None

    def hello(self, package: str) -> dict[str, Any]:
        """Versions, or what is missing."""
        from importlib.metadata import PackageNotFoundError, packages_distributions, version

        try:
            importlib.import_module(package)
        except ImportError as error:
            return {"missing": f"{type(error).__name__}: {error}"}
        names = packages_distributions().get(package, [package])
        try:
            return {"version": version(names[0])}
        except PackageNotFoundError:
            return {"version": "of this checkout"}

    def open(self, job: dict[str, Any], threads: int) -> dict[str, Any]:
        """Begin a training run."""
        import torch
        from contestants import ENTRIES
        from safetensors.torch import load_file
        from training_job import Job, batches_of

        torch.set_num_threads(threads)
        self.contestant, self.job = None, Job(**job)  # the last run's memory first
        batches = batches_of(self.job, load_file(self.job.data)["train"])
        self.contestant = ENTRIES[self.name].new(self.job, batches)
        return {}

    def steps(self, count: int) -> dict[str, float]:
        """Train; processor and wall-clock seconds."""
        self._wait()
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(count):
            self.contestant.step()
        self._wait()
        return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}

    def l0(self) -> dict[str, float]:
        """Active latents per vector, over some that it trains on."""
        import torch
        from safetensors.torch import load_file

        with torch.no_grad():
            _, on = self.contestant.reconstruct(load_file(self.job.data)["train"][:1024].to(self.job.device))
        return {"l0": on.count_nonzero().item() / len(on)}

    def reconstruct(self, split: str, out: str) -> dict[str, Any]:
        """Write `x_hat` of a split of the data, which latents were active there, and the directions."""
        import torch
        from safetensors.torch import load_file, save_file

        hats, active = [], torch.zeros(self.job.n_latents, dtype=torch.bool)
        with torch.no_grad():
            for x in load_file(self.job.data)[split].split(2048):
                x_hat, on = self.contestant.reconstruct(x.to(self.job.device))
                hats.append(x_hat.cpu())
                active |= on.any(0).cpu()
            rows = self.contestant.directions().cpu()
        save_file({"x_hat": torch.cat(hats), "active": active, "directions": rows.contiguous()}, out)
        return {}

    def shares(self, count: int) -> dict[str, float]:
        """Share of processor time by part of the step."""
        from breakdown import shares

        return shares(self.contestant.step, count)

    def layers(self, run: dict[str, Any], threads: int) -> dict[str, float]:
        """Train dictionaries for all layers of a language model; seconds and tokens."""
        import torch
        from all_layers import TRAINERS, LayersJob

        torch.set_num_threads(threads)
        return TRAINERS[self.name].run(LayersJob(**run))

    def _wait(self) -> None:
        if self.job.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()


# ---- the parent's side --------------------------------------------------------------------------------


class Worker:
    """A contestant's process."""

    def __init__(self, name: str, python: str, threads: int, log: Path):
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
        self.name, self.log = name, log
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [python, "-W", "ignore", str(Path(__file__).resolve()), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | limits | offline,
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def ask(self, request: str, **values: Any) -> dict[str, Any]:
        """The answer to one request; raises `RuntimeError` with the worker's last words if it stops."""
        with suppress(BrokenPipeError):  # it has died; what it said last tells why
            self.process.stdin.write(json.dumps({"do": request, **values}) + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            said = self.log.read_text().strip().splitlines()[-3:]
            raise RuntimeError(f"{self.name} stopped at {request!r}: {' | '.join(said)}")
        return json.loads(answer)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.argv[1], sys.stdin, answers)
