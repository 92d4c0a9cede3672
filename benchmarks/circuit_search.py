"""Circuit search by ablation, three ways: a full forward pass per latent, an engineered loop, and ours.

    python benchmarks/circuit_search.py                        storybook and a random GPT-2 of its size
    python benchmarks/circuit_search.py --looped 13            the engineered loop on every target, not on a sample

The search is that of Cunningham et al. 2023: from a latent of the last layer, the three strongest causes in the
layer before; all three are asked for theirs, and below them the strongest one each, down to the first layer.
64 examples per target, none longer than 64 tokens. All ways answer the same questions with the same number, a
ratio of sums; nothing but the effects is computed (no null, no error terms, no single positions).

    literal   every latent of the layer below, one full forward pass of all examples each, with a hook that encodes
              the residual and takes c_j f_j away; logits at all positions, the target read from the whole code
    loop      pairs of latent and example only where the latent is active; again from the source's layer, no further
              than the target's, cut at the target's position, stacked under a budget of memory; the target's
              latent alone is read where that is possible. Our own `Rerun`, so that only the route differs
    ours      what `circuits/effects/exact_routes.py` chooses

A position-layer-forward (PLF) is one position through one block: rows of the modules q, k, v, o and MLP are counted
by hooks, weighted by their parameters. Scores, norms, backward passes and our arithmetic outside of these modules
are not in it; the clean pass, and what is run to measure memory, are. The literal way is timed on a sample of
latents, the kept causes among them, of a sample of targets, the loop on a sample of targets; both are scaled by
their position-layer-forwards, which follow from the examples and codes of all targets. On a machine that is not
idle read CPU time at `--threads 1`. `--quick` runs all of it at a size that shows only that it works; `--record`
appends what is printed to RESULTS.md.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from circuit_causes import QUICK, TOLERANCE, Size
from circuit_comparison import compare
from circuit_hard_cases import hard_cases, tiny_model
from circuit_subjects import MODELS, Subject, Texts, language_model, subjects
from report import Report, record

FEWER, FASTER = 300, 100
"""Bars against the literal way: position-layer-forwards, time."""
BARS = {"parallel": 10, "sequential": 4}
"""Bars against the engineered loop: time."""


def tell(report: Report, name: str, tested: Iterable[Subject], size: Size) -> None:
    """Compare on every dictionary of one model, and say how the ratios stand to the bars."""
    kind, texts = MODELS[name], size.texts
    report.say(
        f"### {name}, {kind} blocks: {size.n_examples} examples of up to {texts.n_ctx} tokens, "
        f"{torch.get_num_threads()} thread(s)"
    )
    took, ratios = [], []
    for subject in tested:
        comparison = compare(subject, size)
        label = (str(subject.n_latents), subject.kind)
        for way, cost in comparison.costs.items():
            peak = comparison.peaks[way] / 2**20
            numbers = (f"{cost.forwards:.3g}", f"{cost.wall:.3g}", f"{cost.cpu:.3g}", f"{peak:.0f}")
            took.append((*label, f"{subject.l0:.0f}", f"{subject.fvu:.2f}", way, *numbers))
        routes, loop, full = (comparison.costs[way] for way in ("ours", "loop", "literal"))
        against = (full.forwards / routes.forwards, full.cpu / routes.cpu, loop.forwards / routes.forwards)
        apart = [max(those) for those in zip(*(question.apart for question in comparison.timed), strict=True)]
        equal = all(question.same for question in comparison.timed) and max(apart) <= TOLERANCE
        passed = against[0] >= FEWER and against[1] >= FASTER and loop.cpu / routes.cpu >= BARS[kind]
        ratios.append(
            (
                *label,
                str(comparison.n_targets),
                *(f"{ratio:.0f}" for ratio in against),
                f"{loop.cpu / routes.cpu:.1f}",
                f"{loop.wall / routes.wall:.1f}",
                f"{min(question.gain for question in comparison.timed):.1f}",
                f"{sum(question.same for question in comparison.timed)} of {len(comparison.timed)}",
                *(f"{most:.0e}" for most in apart),
                "yes" if passed and equal else "no",
            )
        )
        print(f"{name}: {' '.join(ratios[-1])}", file=sys.stderr, flush=True)
    report.table(("latents", "kind", "L0", "FVU", "way", "PLF", "wall, s", "CPU s", "peak, MiB"), took)
    head = ("latents", "kind", "targets", "literal/ours PLF", "CPU time", "loop/ours PLF", "CPU time", "wall clock")
    report.table((*head, "least", "same edges", "loop apart", "literal apart", "all bars"), ratios)
    report.say(
        f"Bars: {FEWER} times fewer PLF and {FASTER} times less CPU time than literal, {BARS[kind]} times less "
        f"than the loop, effects within {TOLERANCE:g}. Literal is timed on {size.literal} latents of {size.looped} "
        f"targets, the loop on {size.looped} targets, both are scaled; of ours the median of {size.rounds} searches. "
        "`least` is the smallest gain of a timed target. The loop's memory is that of its eight longest examples."
    )
    report.say()


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS)[:2], help="models to run")
    parser.add_argument("--latents", nargs="+", type=int, default=[1024, 4096], help="latents per layer")
    parser.add_argument("--looped", type=int, default=4, help="targets on which the others are timed")
    parser.add_argument("--rounds", type=int, default=3, help="times that ours is run")
    parser.add_argument("--threads", type=int, default=2, help="threads")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    parser.add_argument("--record", action="store_true", help="append the figures to RESULTS.md")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    options, report, started = build_parser().parse_args(arguments), Report(), time.time()
    load, threads = os.getloadavg()[0], torch.get_num_threads()
    size = Size(Texts(n_latents=tuple(options.latents)), looped=options.looped, rounds=options.rounds)
    size = QUICK if options.quick else size
    torch.set_num_threads(options.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in options.models:
                tested = list(subjects(language_model(name, Path(folder, name), size.texts), size.texts))
                tell(report, name, tested, size)
                hard_cases(report, name, tested[0], size)
            tiny_model(report, Path(folder, "tiny"), size)
    finally:
        torch.set_num_threads(threads)
    minutes = (time.time() - started) / 60
    report.say(f"{minutes:.1f} minutes; load average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end.")
    if options.record:
        typed = sys.argv[1:] if arguments is None else arguments
        record(Path(__file__).with_name("RESULTS.md"), report, typed, script=Path(__file__).name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
