"""The three claims of the sources on a real language model: IOI, a circuit, and a capability removed.

    python benchmarks/real_model.py FOLDER TEXT [--set DIR] [--out DIR] [--quick]

FOLDER holds a model in Hugging Face layout, TEXT is a file of documents, best prose and code. Dictionaries are trained
on four sites in the middle of the model, or taken from `--set`. Then

    ioi       a few features against PCA and neurons, chosen on other prompts (general) and on the pair (specific)
    circuit   of the feature that best predicts a closing bracket: what its features say of the text, by F1, and how
              much of the target it carries, beside the ceiling, random circuits and the first-order one
    remove    pronoun prediction, against the best LEACE

Every part is saved with its page; one that is there already is read and not run again, so that this may be interrupted.
A table of the findings is printed, whichever way they fall, with the processor and wall-clock time of each part.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import subrank as sr

TOKENS, QUICK_TOKENS = 500_000, 60_000
DEPTHS = (0.27, 0.4, 0.54, 0.67)
"""Where the sites lie, as shares of the layers."""
GET_MODEL = "get one with `hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir FOLDER`"
GET_TEXT = "give some megabytes of prose and code, such as the documentation of Python (.txt or .jsonl)"


@dataclass(frozen=True)
class Part:
    """What a part of the benchmark found, and what it took."""

    name: str
    findings: tuple[str, ...]
    cpu: float
    """Processor seconds, all threads together."""
    wall: float


def timed(times: Path, work: Callable[[], Any]) -> dict[str, float]:
    """What `work` took, kept in the file `times`; where that is there, `work` was finished before and is not done."""
    if not times.is_file():
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        times.write_text(json.dumps({"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}))
    return json.loads(times.read_text())


def part(name: str, out: Path, run: Callable[[], sr.Result], findings: Callable[[Any], Sequence[str]]) -> Part:
    """The part as it was saved in `out`, else run and saved there."""
    folder = out / name
    spent = timed(folder / "time.json", lambda: run().save(folder))
    return Part(name, tuple(findings(sr.load_result(folder))), **spent)


def dictionaries(model: sr.LanguageModel, options: argparse.Namespace, out: Path) -> tuple[sr.Saes, Part]:
    """The set that was given, or one trained here; a finished one is read."""
    folder, spent = options.set or out / "dictionaries", {"cpu": 0.0, "wall": 0.0}
    if options.set is None:
        sites = sorted({f"resid_post.{int(depth * model.n_layers)}" for depth in DEPTHS})
        n = QUICK_TOKENS if options.quick else TOKENS
        spent = timed(out / "training.json", lambda: sr.train(model, options.text, sites=sites, tokens=n).save(folder))
    saes = sr.load(folder)
    sizes = [f"{site}: {len(sae.directions):,} latents" for site, sae in saes.dictionaries.items()]
    return saes, Part("dictionaries", tuple(saes.quality.lines() if saes.quality else sizes), **spent)


def of_circuit(circuit: Any) -> list[str]:
    """The target, what the circuit's features say of the text, and how faithful it is beside its controls."""
    lines = circuit.lines()[:1] + [claim.line() for claim in circuit.claims]
    if circuit.evaluation is None:
        return lines + list(circuit.notes)
    lines += [reached.line() for reached in circuit.evaluation.reached]
    return lines + [compared.lines()[0] for compared in circuit.evaluation.controls]


def table(parts: Sequence[Part]) -> str:
    """The findings as Markdown, a row each."""
    rows = ["| part | CPU min | min | finding |", "|---|---|---|---|"]
    for each in parts:
        times = (f"{each.cpu / 60:.1f}", f"{each.wall / 60:.1f}")
        for number, finding in enumerate(each.findings):
            cells = (each.name, *times) if number == 0 else ("", "", "")
            rows.append(f"| {' | '.join(cells)} | {finding.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts that are missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help=f"a model in Hugging Face layout; {GET_MODEL}")
    parser.add_argument("text", nargs="?", help=f"a file of documents; {GET_TEXT}")
    parser.add_argument("--set", type=Path, help="dictionaries that are there already")
    parser.add_argument("--out", type=Path, default=None, help="where results go (default: real_model)")
    parser.add_argument("--target", default="next: )", help="whose circuit is drawn (default: next: ))")
    parser.add_argument("--quick", action="store_true", help="about a tenth of the work; the results say so")
    options = parser.parse_args(argv)
    if not (options.folder / "config.json").is_file():
        parser.error(f"{options.folder} holds no model in Hugging Face layout; {GET_MODEL}")
    if options.set is None and options.text is None:
        parser.error(f"no text to train dictionaries on, nor --set; {GET_TEXT}")
    out = options.out or Path("real_model_quick" if options.quick else "real_model")
    out.mkdir(parents=True, exist_ok=True)
    try:
        parts = [*run(options, out)]
    except sr.UserError as error:
        parser.error(str(error))
    print(f"\n{options.folder.name}, {'quick, ' if options.quick else ''}{options.target}\n\n{table(parts)}")


def run(options: argparse.Namespace, out: Path) -> list[Part]:
    """The four parts, one after the other."""
    model, quick = sr.load_model(options.folder), options.quick
    saes, trained = dictionaries(model, options, out)
    verbs: dict[str, tuple[Callable[[], sr.Result], Callable[[Any], Sequence[str]]]] = {
        "ioi": (lambda: sr.ioi(model, saes, quick=quick), lambda result: result.lines()),
        "circuit": (lambda: sr.discover(model, saes, options.target, quick=quick), of_circuit),
        "remove": (lambda: sr.remove(model, saes, "pronouns", quick=quick), lambda result: result.lines()),
    }
    parts = [trained]
    for name, (verb, findings) in verbs.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        parts.append(part(name, out, verb, findings))
    return parts


if __name__ == "__main__":
    main()
