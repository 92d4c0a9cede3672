"""Whether a change kept every number: run all verbs before and after it, and compare what they wrote.

    python benchmarks/same_results.py run BEFORE      # in the checkout before the change
    python benchmarks/same_results.py run AFTER       # in the checkout after it
    python benchmarks/same_results.py compare BEFORE AFTER

Sets are compared byte for byte, the numbers of every `result.json` to a relative 1e-6, by their paths; a number with an
interval has the same paths as an `Estimate`, as an object with `mean`, and as a list. Both runs must be of one machine:
trained numbers differ between processors. The exit status is 1 if anything differs or is missing; keys that only one of
the two has are listed, and are no difference.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOLERANCE = 1e-6
SETS = {
    "set": "train storybook --tokens 100000",
    "sweep": "train storybook --kind relu gated batchtopk jumprelu matryoshka tied"
    " --sites resid_post.2 mlp_out.2 --tokens 20000",
}
RUNS = {
    "ioi": "ioi {set} --prompts 24",
    "circuit": "circuit {set} --contexts 300 --held 100 --cards 50",
    "nodes": "circuit {set} --nodes 20 --contexts 300 --held 100 --draws 1 --cards 0",
    "task": "circuit {set} --target 'task: ioi' --contexts 200 --held 100 --draws 1 --cards 0 --max-targets 5",
    "remove": "remove {set} --prompts 48",
    "steer": "steer {set} --contexts 16",
    "features": "features {set} --contexts 200 --full 6",
    "evaluate": "evaluate {set} {sweep} --contexts 32 --spliced 8",
}
INTERVALS = ({"value", "low", "high"}, {"mean", "low", "high"})


def run_all(out: Path) -> int:
    """Every verb, on one thread, into `out/NAME`; returns how many failed."""
    out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    folders, failed = {name: shlex.quote(str(out / name)) for name in SETS}, 0
    for name, arguments in (SETS | RUNS).items():
        command = [sys.executable, "-m", "subrank", *shlex.split(arguments.format(**folders)), "--out", str(out / name)]
        with (out / f"{name}.log").open("w") as log:
            status = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
        print(f"{name}: exit status {status}", flush=True)
        failed += status != 0
    return failed


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value in a JSON document, with its path."""
    if isinstance(value, dict) and set(value) in INTERVALS:
        centre = next(key for key in ("value", "mean") if key in value)
        value = [value[centre], value["low"], value["high"]]
    if isinstance(value, dict):
        for key, below in value.items():
            yield from leaves(below, f"{path}/{key}")
    elif isinstance(value, list):
        for position, below in enumerate(value):
            yield from leaves(below, f"{path}/{position}")
    else:
        yield path, value


def differ(a: Any, b: Any) -> bool:
    """Numbers by more than the tolerance, anything else at all."""
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    return abs(a - b) > TOLERANCE * max(1.0, abs(a)) if numbers else a != b


def compare_set(before: Path, after: Path) -> list[str]:
    """What differs between the weights and cards of two sets or sweeps."""
    differences = []
    for file in sorted(before.rglob("*")):
        if file.suffix == ".safetensors" or file.name in ("cfg.json", "set.json"):
            other = after / file.relative_to(before)
            if not other.is_file():
                differences.append(f"{other} is missing")
            elif file.read_bytes() != other.read_bytes():
                differences.append(f"{other} has other bytes")
    return differences


def compare_result(before: Path, after: Path) -> list[str]:
    """What differs between two `result.json`; keys of one of them only are printed."""
    for file in (before, after):
        if not file.is_file():
            return [f"{file} is missing"]
    a, b = (dict(leaves(json.loads(file.read_text()))) for file in (before, after))
    for name, keys in (("before", a.keys() - b.keys()), ("after", b.keys() - a.keys())):
        if keys:
            print(f"{after.parent.name}: {len(keys)} values only {name}, such as {', '.join(sorted(keys)[:6])}")
    shared = a.keys() & b.keys()
    print(f"{after.parent.name}: {len(shared)} values in both")
    return [
        f"{after.parent.name}{key}: {a[key]} before, {b[key]} after" for key in sorted(shared) if differ(a[key], b[key])
    ]


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("run").add_argument("out", type=Path)
    compare = actions.add_parser("compare")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    options = parser.parse_args(arguments)
    if options.action == "run":
        return 1 if run_all(options.out.resolve()) else 0
    differences = []
    for name in SETS:
        differences += compare_set(options.before / name, options.after / name)
    for name in RUNS:
        differences += compare_result(options.before / name / "result.json", options.after / name / "result.json")
    print("\n".join(differences) if differences else "nothing differs")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
