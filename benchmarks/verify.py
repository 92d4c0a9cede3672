"""Whether what every verb reports is what plain forward passes say: `make verify`.

    python benchmarks/verify.py [--out FOLDER] [--full]

Trains dictionaries of storybook, runs each verb with --check (and --quick, unless --full), and prints one table:
how many numbers were computed again, and how far the worst lies from what is reported, beside what rounding may do
(`subrank/checking/recomputed.py`). The exit status is 1 where a number disagrees, or a verb fails.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from sae_core.codec import from_plain
from sae_core.files import read_json
from subrank.checking.recomputed import Check
from subrank.cli import command

VERBS = {
    "evaluate": ["evaluate"],
    "ioi": ["ioi"],
    "ioi, jointly": ["ioi", "--jointly", "resid_post.3", "mlp_out.3", "--baselines", "pca", "--corruption", "swap"],
    "circuit": ["circuit", "--max-targets", "5"],
    "circuit of a task": ["circuit", "--target", "task: ioi", "--ablation", "mean", "--reach", "all"],
    "remove": ["remove", "--site", "resid_post.3"],
    "steer": ["steer"],
    "steer, clamped": ["steer", "--mode", "clamp"],
    "features": ["features"],
    "prompt": ["prompt", "Mary and John went to the store. John gave a drink to"],
}
HEAD = ("verb", "numbers", "largest difference", "of what rounding may do", "of", "verdict")


def row(name: str, folder: Path, status: int) -> list[str]:
    """A line of the table, of the check that a verb wrote into `folder`."""
    check = from_plain(Check, read_json(folder / "result.json")["check"]) if status in (0, 1) else None
    if check is None or (worst := check.worst) is None:
        return [name, "0", "", "", "", "FAILED"]
    share = worst.difference / check.allowed(worst)
    verdict = "WRONG" if check.disagreeing else "agrees"
    return [name, str(len(check.numbers)), f"{worst.difference:.1e}", f"{share:.1%}", worst.what, verdict]


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=None, help="where sets and results are kept (default: nowhere)")
    parser.add_argument("--full", action="store_true", help="every verb at its usual size")
    options = parser.parse_args(arguments)
    quick = [] if options.full else ["--quick"]
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        train = ["train", "storybook", "--sites", "resid_post", "mlp_out.3", "--out", str(out / "set"), *quick]
        if command.main(train):
            return 1
        rows = []
        for name, (verb, *settings) in VERBS.items():
            folder = out / name.replace(", ", "-").replace(" ", "-")
            done = command.main([verb, str(out / "set"), "--check", "--out", str(folder), *settings, *quick])
            if done > 2:  # it was stopped
                return done
            rows.append(row(name, folder, done))
    print()
    for cells in (HEAD, ["---"] * len(HEAD), *rows):
        print(f"| {' | '.join(cells)} |")
    return 0 if all(cells[-1] == "agrees" for cells in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
