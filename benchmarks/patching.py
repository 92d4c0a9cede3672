"""The whole IOI curve, by our stacked runs from the edited layer and by one full forward pass per point with hooks.

    python benchmarks/patching.py                 storybook and a random model of Pythia-70M's shape
    python benchmarks/patching.py --naive 256     the naive way on every point, not on a sample

Both measure the same: 256 prompt pairs, 256 points, at the residual of each of six layers, with a TopK dictionary
of four times the width; KL, logit difference and probability of the answer at every point. The naive way encodes
the clean run once, and for each point runs the corrupted prompts from the tokens with a hook that moves the chosen
latents; logits are computed at all positions, as models do. It is timed on a sample of the points, evenly spread,
and scaled to all; its numbers there must be ours to 1e-5 of the largest, else the exit status is 1. `--pca` adds the
hard case: its codes differ everywhere, so that no prompt is left out at any point. On a machine that is not idle read
CPU time at `--threads 1`. `--quick` runs all of it at a size that shows only that it works; `--record` appends what is
printed to RESULTS.md.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from all_layers import PYTHIA_70M, write_model
from report import Report, record
from torch import Tensor

from editing.interventions.patch import FeaturePatch
from editing.ioi.curve import trace
from editing.ioi.site_experiment import PatchExperiment
from editing.tasks.ioi import Corruption, IOITask
from editing.tasks.pairs import PromptPairs, at_end
from sae_core.data.activations import harvest
from sae_core.dictionaries.baselines import pca
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.saes import TopKSAE
from sae_core.model.language_model import LanguageModel, load_model
from sae_core.seeds import generator_for
from sae_core.sites import Site

BARS = {"storybook": 4.0, "Pythia-70M shape": 8.0}
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Size:
    """How much is run."""

    prompts: int = 256
    points: int = 256
    sites: int = 6
    naive: int = 4
    """Points at which the naive way is timed, per site."""
    pca: bool = False
    """Whether PCA is run, too."""


def naive_point(model: LanguageModel, pairs: PromptPairs, patch: FeaturePatch, clean_log_probs: Tensor) -> Tensor:
    """KL, logit difference and probability of the answer, `[batch, 3]`: one full forward with a hook."""
    with model.hooks(patch):
        logits = at_end(model.bridge(pairs.corrupted).float(), pairs.end)
    log_probs, rows = logits.log_softmax(-1), torch.arange(len(pairs))
    kl = (clean_log_probs.exp() * (clean_log_probs - log_probs)).sum(-1)
    difference = logits[rows, pairs.answer] - logits[rows, pairs.foil]
    return torch.stack([kl, difference, log_probs[rows, pairs.answer].exp()], dim=-1)


def clocks() -> Tensor:
    """Wall clock and processor time, in seconds."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


@torch.no_grad()
def naive(
    model: LanguageModel,
    pairs: PromptPairs,
    site: Site,
    dictionary: Dictionary,
    order: Sequence[int],
    counts: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """(readouts, wall clock and processor seconds per point) of the points with so many features."""
    clean = model.record(pairs.clean, [site])[site]
    log_probs = at_end(model.bridge(pairs.clean).float(), pairs.end).log_softmax(-1)
    mask = model.content(pairs.clean) & (torch.arange(clean.shape[1]) <= pairs.end[:, None])
    codes, points, started = dictionary.encode(clean), [], clocks()
    for count in counts:
        latents = torch.tensor(list(order[:count]), dtype=torch.long)
        patch = FeaturePatch(site, dictionary, latents, codes[..., latents], mask)
        points.append(naive_point(model, pairs, patch, log_probs))
    return torch.stack(points), (clocks() - started) / len(counts)


def difference(values: Tensor, expected: Tensor) -> float:
    """The largest difference of two readouts, relative to the largest value of each of the three numbers."""
    return ((values - expected).abs().amax((0, 1)) / expected.abs().amax((0, 1))).max().item()


def compare(report: Report, name: str, model: LanguageModel, pairs: PromptPairs, size: Size) -> float:
    """Time both ways at every site; say by how much their numbers differ at most, and return it."""
    sites = model.sites()[: size.sites]
    x = harvest(model, torch.cat([pairs.clean, pairs.corrupted]), tuple(sites))
    length, threads = pairs.clean.shape[1], torch.get_num_threads()
    report.say(f"### {name}: {len(pairs)} prompts of up to {length} tokens, {len(sites)} sites, {threads} thread(s)")
    rows, totals, worst = [], {}, 0.0
    for kind in ("TopK", "PCA") if size.pca else ("TopK",):
        stacked, single = torch.zeros(2), torch.zeros(2)
        for site in sites:
            dictionary = pca(x[site]) if kind == "PCA" else topk(x[site], generator=generator_for(0, "topk", site))
            n = min(size.points, len(dictionary.directions))
            order = PatchExperiment(model, pairs, site).patching(dictionary).first_order()
            order = order.argsort(descending=True).tolist()
            started = clocks()
            patching = PatchExperiment(model, pairs, site).patching(dictionary)
            traced = trace(patching, order, range(1, n + 1))
            took = clocks() - started
            sample = torch.linspace(1, n, min(size.naive, n)).long().tolist()
            expected, each = naive(model, pairs, site, dictionary, order, sample)
            scaled = n * each
            apart = difference(torch.stack(traced.readout[:3], -1)[[count - 1 for count in sample]], expected.double())
            run = patching.differs[:, order[:n]].float().mean().item()
            stacked, single = stacked + took, single + scaled
            worst = worst if apart <= worst else apart  # not a number, too
            times = (f"{seconds:.1f}" for seconds in torch.cat([took, scaled, scaled / took]).tolist())
            rows.append((str(site), kind, str(n), *times, f"{run:.0%}", f"{apart:.1e}"))
            print(f"{name}: {' '.join(rows[-1])}", file=sys.stderr, flush=True)
        totals[kind] = (single / stacked).tolist()
    head = ("site", "features", "points", "ours, s", "CPU s", "naive, s", "CPU s", "times faster", "in CPU time")
    report.table((*head, "prompts run", "largest difference"), rows)
    for kind, (wall, cpu) in totals.items():
        bar = f"; the bar is {BARS[name]:g}" if kind == "TopK" else ""
        report.say(f"The whole curve, {kind}: {wall:.1f} times faster by the clock, {cpu:.1f} in CPU time{bar}.")
    report.say(f"Naive: measured on {size.naive} points per site and scaled.")
    report.say(f"Same numbers to {worst:.1e}; the bar is {TOLERANCE:g}.")
    report.say()
    return worst


def topk(x: Tensor, *, k: int = 16, generator: torch.Generator) -> TopKSAE:
    """A TopK dictionary of four times the width, at the mean and scale of `x`: what is patched need not be trained."""
    sae = TopKSAE(x.shape[-1], 4 * x.shape[-1], k, generator=generator).requires_grad_(False)
    sae.b_dec += x.mean(0)
    return sae


def ioi_pairs(model: LanguageModel, n: int) -> PromptPairs:
    """IOI prompts of the bundled model's grammar."""
    return IOITask.of(model).pairs(model, Corruption.IO, "test", n, seed=0)


def pythia(folder: Path, *, quick: bool) -> LanguageModel:
    """A random GPT-NeoX of Pythia-70M's shape; small for `--quick`.

    Its matrices are drawn larger than usual, so that what is patched moves the logits at all.
    """
    small = {"vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 6, "intermediate_size": 64}
    write_model(folder, **(PYTHIA_70M | (small if quick else {})))
    model = load_model(folder, device="cpu")
    for weight in model.bridge.original_model.parameters():
        if weight.ndim == 2:
            weight.mul_(4 * (PYTHIA_70M["hidden_size"] / model.d_model) ** 0.5)
    return model


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=256, help="prompt pairs")
    parser.add_argument("--points", type=int, default=256, help="points of the curve")
    parser.add_argument("--naive", type=int, default=4, help="points per site at which the naive way is timed")
    parser.add_argument("--threads", type=int, default=2, help="threads")
    parser.add_argument("--pca", action="store_true", help="curves of PCA, too")
    parser.add_argument("--models", nargs="+", choices=list(BARS), default=list(BARS), help="models to run")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    parser.add_argument("--record", action="store_true", help="append the figures to RESULTS.md")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 1 if the two ways do not give the same numbers."""
    options, report, started = build_parser().parse_args(arguments), Report(), time.time()
    load, threads = os.getloadavg()[0], torch.get_num_threads()
    size = Size(options.prompts, options.points, 6, options.naive, options.pca)
    size, apart = Size(8, 6, 2, 2, pca=True) if options.quick else size, []
    torch.set_num_threads(options.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in options.models:
                bundled = name == "storybook"
                model = load_model(name, device="cpu") if bundled else pythia(Path(folder), quick=options.quick)
                apart.append(compare(report, name, model, ioi_pairs(model, size.prompts), size))
    finally:
        torch.set_num_threads(threads)
    minutes = (time.time() - started) / 60
    report.say(f"{minutes:.1f} minutes; load average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end.")
    if options.record:
        typed = sys.argv[1:] if arguments is None else arguments
        record(Path(__file__).with_name("RESULTS.md"), report, typed, script=Path(__file__).name)
    return int(not all(worst <= TOLERANCE for worst in apart))


if __name__ == "__main__":
    raise SystemExit(main())
