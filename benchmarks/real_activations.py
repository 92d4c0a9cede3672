"""Our training step beside sparsify's on the activations of a real model, which hold tokens of massive norm.

    python benchmarks/real_activations.py FOLDER TEXT --python-rivals PYTHON

FOLDER holds a model in Hugging Face layout, TEXT is a file of documents. Equal for all: vectors and their order,
sizes, k, batch, steps, the vectors' scale (E|x|^2 = d over tokens that are no outliers), and how they are measured:
FVU and loss recovered on held-out text, outliers (norm above ten times the median) left out of both. sparsify is
trained on all vectors with its default optimiser, as it ships, and, in its best form, on those without outliers with
that optimiser and with Adam. Processor seconds of the steps at one thread.
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
from field import Field
from report import Report
from safetensors.torch import load_file, save_file
from torch import Tensor
from training_job import Job

from sae_core.data.activations import harvest
from sae_core.data.text import Text
from sae_core.evaluation.reconstruction import fvu
from sae_core.model.language_model import LanguageModel, load_model
from sae_core.outliers import FACTOR, inliers, norm_limit
from sae_core.sites import Site

HELD_OUT = 64
"""Contexts."""
CONTESTANTS = ((OURS, "all"), ("sparsify, signum", "all"), ("sparsify, signum", "inliers"), ("sparsify", "inliers"))
"""Who is trained on which vectors; `sparsify` alone means with Adam, at our learning rate."""


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
    model = load_model(options.folder, dtype=options.dtype)
    text = Text(str(options.text), 128, True, options.tokens + 2 * HELD_OUT * 128)
    contexts = text.read(model)
    held, training = contexts.held_out[:HELD_OUT], contexts.training[: options.tokens // 128]
    sites = [Site.parse(name) for name in options.sites]
    report = Report()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder, ExitStack() as stack:
        pythons = {"own": sys.executable, "rivals": options.python_rivals, "saelens": None}
        field = Field(pythons, Path(folder), report)
        vectors = write_vectors(model, training, held, sites, Path(folder))
        workers = field.open(stack, {name: ENTRIES[name] for name, _ in CONTESTANTS}, 1)
        loss = SplicedLoss(model, held)
        for site, (paths, scale) in vectors.items():
            rows = []
            x = load_file(paths["all"])["test"]
            kept = inliers(x, norm_limit(x.norm(dim=-1), FACTOR))
            zeroed = loss(site, torch.zeros_like(x), kept)
            for name, data in CONTESTANTS:
                job = job_of(options, paths[data], model.d_in(site))
                workers[name].ask("open", job=asdict(job), threads=1)
                seconds = workers[name].ask("steps", count=job.steps)["cpu"]
                out = Path(folder) / "hat.safetensors"
                workers[name].ask("reconstruct", split="test", out=str(out))
                x_hat = load_file(out)["x_hat"]
                recovered = (zeroed - loss(site, x_hat / scale, kept)) / (zeroed - loss.original)
                label = f"{name}, {data}"
                rows.append((label, f"{fvu(x[kept], x_hat[kept]):.4f}", f"{recovered:.4f}", f"{seconds:.0f}"))
                print(site, rows[-1], flush=True)
            report.say(f"### {site}")
            report.table(("contestant, vectors it was trained on", "FVU", "loss recovered", "CPU seconds"), rows)


def job_of(options: argparse.Namespace, path: Path, d_in: int) -> Job:
    """One training run on a file of vectors, at our default learning rate."""
    n_latents, steps = options.expansion * d_in, int(options.epochs * options.tokens / options.batch)
    lr = 5e-4 * (2**14 / n_latents) ** 0.5
    return Job(str(path), n_latents, options.k, options.batch, steps, lr, 50, 100_000)


def write_vectors(model: LanguageModel, training: Tensor, held: Tensor, sites: list[Site], folder: Path) -> dict:
    """Two files of vectors per site, all of them and those that are no outliers, and their scale."""
    at_sites, test = harvest(model, training, tuple(sites)), harvest(model, held, tuple(sites))
    vectors = {}
    for site in sites:
        x = at_sites.pop(site).float()
        limit = norm_limit(x.norm(dim=-1), FACTOR)
        kept = inliers(x, limit)
        scale = math.sqrt(x.shape[-1] / x[kept].pow(2).sum(-1).mean().item())
        paths = {name: folder / f"{site}-{name}.safetensors" for name in ("all", "inliers")}
        for name, rows in (("all", x), ("inliers", x[kept])):
            save_file({"train": scale * rows, "test": scale * test[site].float()}, paths[name])
        print(f"{site}: {int((~kept).sum())} outliers of {len(x)} vectors", flush=True)
        vectors[site] = paths, scale
    return vectors


class SplicedLoss:
    """Cross-entropy of the model on held-out text, with given vectors in place of the tokens that are no outliers."""

    def __init__(self, model: LanguageModel, contexts: Tensor):
        self.model, self.contexts = model, contexts
        self.original = self._mean(lambda mask, start: ())

    def __call__(self, site: Site, rows: Tensor, kept: Tensor) -> float:
        """Mean over content tokens, in nats."""

        def edits(content: Tensor, start: int) -> tuple[Replaced, ...]:
            part = slice(start, start + int(content.sum()))
            where = torch.zeros_like(content)
            where[content] = kept[part]
            return (Replaced(site, rows[part][kept[part]], where),)

        return self._mean(edits)

    @torch.no_grad()
    def _mean(self, edits) -> float:
        total, scored, start = 0.0, 0, 0
        for tokens in self.contexts.split(8):
            content, targets = self.model.content(tokens), self.model.content(tokens[:, 1:])
            with self.model.hooks(*edits(content, start)):
                log_probs = self.model.logits(tokens)[:, :-1].float().log_softmax(-1)
            nll = -log_probs.gather(-1, tokens[:, 1:, None])[..., 0]
            total += nll[targets].double().sum().item()
            scored += int(targets.sum())
            start += int(content.sum())
        return total / scored


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--python-rivals", required=True, metavar="PYTHON")
    parser.add_argument("--sites", nargs="+", default=[f"resid_post.{layer}" for layer in (8, 12, 16, 20)])
    parser.add_argument("--tokens", type=int, default=500_000, help="tokens of the text")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("-k", type=int, default=32)
    parser.add_argument("--expansion", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--dtype", default="auto", help="of the language model (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="folder for the vectors, about 2.4 GB per site")
    return parser


if __name__ == "__main__":
    main()
