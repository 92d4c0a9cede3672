"""Our training step beside those of other packages: speed, quality, and all layers of a language model.

    python benchmarks/train_throughput.py                 vectors per second of the whole step
    python benchmarks/train_throughput.py --kind relu     of another kind than TopK, once its codes are sparse
    python benchmarks/train_throughput.py --activations MODEL TEXT SITE      on a language model's activations
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
import sys
import tempfile
import time
from pathlib import Path

from field import Field
from layers_speed import all_layers
from quality import planted_data, quality, storybook_data
from report import Report, record
from step_speed import QUICK_SHAPES, ROWS, SHAPES, Shape, Timing, speed
from vectors import activations, write_splits


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
    parser.add_argument(
        "--kind", choices=("topk", "jumprelu", "relu", "gated"), default="topk", help="whose step to time"
    )
    where = ("MODEL", "TEXT", "SITE")
    parser.add_argument("--activations", nargs=3, metavar=where, help="train on these, and not on planted vectors")
    parser.add_argument("--before", type=int, help="steps of ours before the first that is timed (2; 200 for --kind)")
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
            before = options.before or (2 if options.quick or options.kind == "topk" else 200)
            counts, data = (options.rounds or rounds, options.vectors or vectors), None
            if options.activations:
                data, x = field.folder / "activations.safetensors", activations(*options.activations, ROWS)
                write_splits(data, x, 1)
                usual = [Shape(x.shape[1], 8 * x.shape[1], 1024)]
            speed(field, shapes or usual, Timing(*counts, options.device, options.kind, before, data))
    minutes = (time.time() - started) / 60
    report.say(f"{minutes:.1f} minutes; load average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end.")
    if options.record:
        typed = sys.argv[1:] if arguments is None else arguments
        record(Path(__file__).with_name("RESULTS.md"), report, typed, script=Path(__file__).name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
