"""Our training step beside sparsify's on the activations of a real model, which hold tokens of massive norm.

    python benchmarks/real_activations.py FOLDER TEXT --python-rivals PYTHON

FOLDER holds a model in Hugging Face layout, TEXT is a file of documents. Equal for both: vectors and their order,
sizes, k, batch, steps, the vectors' scale (E|x|^2 = d over tokens that are no outliers), and how they are measured:
FVU and loss recovered on held-out text, outliers (norm above ten times the median) left out of both. sparsify is
trained on all vectors, as it ships, and, in its best form, on those without outliers. Processor seconds of the steps
at one thread.
"""

import argparse
import math
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from contestants import ENTRIES, OURS
from safetensors.torch import load_file, save_file
from torch import Tensor
from train_throughput import Field, Report

from sae_core.data.activations import harvest
from sae_core.data.text import Text
from sae_core.evaluation.reconstruction import fvu
from sae_core.model.language_model import LanguageModel, load_model
from sae_core.outliers import FACTOR, inliers, norm_limit
from sae_core.seeds import generator_for
from sae_core.sites import Site

HELD_OUT = 64
"""Contexts."""


@dataclass(frozen=True, eq=False)
class Replaced:
    """Given vectors at the content tokens that are no outliers."""

    site: Site
    rows: Tensor
    where: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        return h.index_put(self.where.nonzero(as_tuple=True), self.rows.to(h))


def main() -> None:
    options = build_parser().parse_args()
    torch.set_num_threads(1)
    model = load_model(options.folder)
    text = Text(str(options.text), 128, True, options.tokens + 2 * HELD_OUT * 128)
    contexts = text.contexts(model)
    held, training = contexts.held_out[:HELD_OUT], contexts.training
    sites = [Site.parse(name) for name in options.sites]
    report = Report()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder, ExitStack() as stack:
        pythons = {"own": sys.executable, "rivals": options.python_rivals, "saelens": None}
        field = Field(pythons, Path(folder), report)
        jobs = write_vectors(model, training, held, sites, Path(folder))
        names = {name: ENTRIES[name] for name in (OURS, "sparsify")}
        workers = field.open(stack, names, 1)
        for site, (data, scale) in jobs.items():
            rows = []
            for name, path in ((OURS, data["all"]), ("sparsify", data["all"]), ("sparsify", data["inliers"])):
                job = job_of(options, path, model.d_in(site))
                workers[name].ask("open", job=asdict(job), threads=1)
                seconds = workers[name].ask("steps", count=job.steps)["cpu"]
                out = Path(folder) / "hat.safetensors"
                workers[name].ask("reconstruct", split="test", out=str(out))
                x, x_hat = load_file(path)["test"], load_file(out)["x_hat"]
                kept = inliers(x, norm_limit(x.norm(dim=-1), FACTOR))
                recovered = loss_recovered(model, held, site, x_hat / scale, kept)
                label = name + ("" if path == data["all"] else ", without outliers")
                rows.append((label, f"{fvu(x[kept], x_hat[kept]):.4f}", f"{recovered:.4f}", f"{seconds:.0f}"))
            report.say(f"### {site}")
            report.table(("contestant", "FVU", "loss recovered", "CPU seconds"), rows)


def job_of(options: argparse.Namespace, path: Path, d_in: int) -> Job:
    """One training run on a file of vectors, at our default learning rate."""
    n_latents, steps = options.expansion * d_in, int(options.epochs * options.tokens / options.batch)
    lr = 5e-4 * (2**14 / n_latents) ** 0.5
    return Job(str(path), n_latents, options.k, options.batch, steps, lr, 50, 100_000)


def write_vectors(model: LanguageModel, training: Tensor, held: Tensor, sites: list[Site], folder: Path) -> dict:
    """A file of vectors per site, with and without outliers, in one random order, and their scale."""
    at_sites, test = harvest(model, training, tuple(sites)), harvest(model, held, tuple(sites))
    jobs = {}
    for site in sites:
        x = at_sites.pop(site)
        limit = norm_limit(x.norm(dim=-1), FACTOR)
        kept = inliers(x, limit)
        scale = math.sqrt(x.shape[-1] / x[kept].pow(2).sum(-1).mean().item())
        order = torch.randperm(len(x), generator=generator_for(0, "order"))
        files = {"all": folder / f"{site}-all.safetensors", "inliers": folder / f"{site}-inliers.safetensors"}
        save_file({"train": (scale * x[order]).contiguous(), "test": scale * test[site]}, files["all"])
        few = order[kept[order]]
        save_file({"train": (scale * x[few]).contiguous(), "test": scale * test[site]}, files["inliers"])
        print(f"{site}: {int((~kept).sum())} outliers of {len(x)} vectors", flush=True)
        jobs[site] = files, scale
    return jobs


@torch.no_grad()
def loss_recovered(model: LanguageModel, contexts: Tensor, site: Site, x_hat: Tensor, kept: Tensor) -> float:
    """Loss recovered on the scale zero-ablated = 0, with `x_hat` in place of the tokens that are `kept`."""
    content = model.content(contexts)
    where = torch.zeros_like(content)
    where[content] = kept
    rows, totals, start = x_hat[kept], torch.zeros(3, dtype=torch.float64), 0
    for tokens, mask in zip(contexts.split(8), where.split(8), strict=True):
        n = int(mask.sum())
        part = rows[start : start + n]
        start += n
        scored = model.content(tokens[:, 1:])
        for i, edits in enumerate(((), (Replaced(site, part, mask),), (Replaced(site, torch.zeros_like(part), mask),))):
            with model.hooks(*edits):
                log_probs = model.logits(tokens)[:, :-1].log_softmax(-1)
            nll = -log_probs.gather(-1, tokens[:, 1:, None])[..., 0]
            totals[i] += nll[scored].double().sum()
    original, spliced, zeroed = totals.tolist()
    return (zeroed - spliced) / (zeroed - original)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--python-rivals", required=True, metavar="PYTHON")
    parser.add_argument("--sites", nargs="+", default=[f"resid_post.{layer}" for layer in (8, 12, 16, 20)])
    parser.add_argument("--tokens", type=int, default=250_000, help="tokens of the text")
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("-k", type=int, default=32)
    parser.add_argument("--expansion", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--scratch", type=Path, help="folder for the vectors, about 1.2 GB per site")
    return parser


if __name__ == "__main__":
    main()
