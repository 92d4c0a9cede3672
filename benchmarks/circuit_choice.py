"""Ways to choose the members of a circuit, measured against each other at equal size, on prompts that chose nothing.

    subrank train storybook --sites resid_post attn_out mlp_out --tokens 500000
    python benchmarks/circuit_choice.py dictionaries --record

Circuits of what blocks write in all layers (`--stream residual`: of the residual), everything else and all error terms
ablated. Cases: IOI with three names and one template (of 64 prompts that score 6 are among those that chose); the task
IOI, templates and names that chose nothing (the two names swap roles in the corrupted prompts, whose codes are
outside); the task brackets, with means outside and with the corrupted prompts' codes; one feature that closes brackets.
Ways:

    first order       the largest effects in the untouched model, no pruning
    signed            pruning by one gradient; what opposes the target goes first
    sizes             pruning by one gradient; the smallest effects go first
    two shares        the same with gradients at a half and the whole of what is left
    exact             that, and at 250 members or fewer by ablating each
    exchange          two shares, then members exchanged while the target comes nearer to the model's: what `prune` does

Shown is the faithfulness on held-out prompts as a share of the ceiling (all latents, errors ablated) and of the model,
on the prompts that chose, and with all error terms kept: what error nodes could add at most.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int
from report import Report, record
from torch import Tensor

from circuits.discovery.default_target import CLOSING_BRACKETS, default_target
from circuits.discovery.prompts import from_task
from circuits.discovery.pruning import Choice, Search, prune
from circuits.discovery.request import Covered
from circuits.effects.target_prompts import TargetPrompts
from circuits.effects.targets import FeatureTarget
from circuits.features.atlas import survey
from circuits.scoring.ablations import MeanAblation, default_ablation
from circuits.scoring.attribution import attribution, strongest
from circuits.scoring.circuit_runs import CircuitRuns, Errors, by_site, covered_sites
from circuits.scoring.faithfulness import Scale
from editing.tasks.brackets import BracketTask
from editing.tasks.ioi import Corruption, IOITask
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel, load_model
from sae_core.sites import FeatureId, Site
from sae_core.storage import load_set

SPLITS = ("selection", "test")
WAYS = {
    "first order": None,
    "signed": Choice((1.0,), signed=True, exchanges=0),
    "sizes": Choice((1.0,), exchanges=0),
    "two shares": Choice(exchanges=0),
    "exact": Choice(exact_below=250, exchanges=0),
    "exchange": Choice(),
    "errors": Choice(),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A target on prompts that choose members, and on others."""

    title: str
    prompts: tuple[TargetPrompts, TargetPrompts]
    means: bool
    """Whether means are outside; else the corrupted prompts' codes."""


def tasks(model: LanguageModel, n: int, *, prepend_bos: bool) -> Iterator[Case]:
    """IOI with few names and with many, and brackets."""
    everyone = IOITask.of(model)
    few = replace(
        everyone,
        names={split: ["Mary", "John", "Tom"] for split in SPLITS},
        templates=dict.fromkeys(SPLITS, everyone.templates["selection"][:1]),
    )
    for title, task in (("IOI, three names", few), ("IOI, all names", everyone)):
        drawn = (
            task.pairs(model, Corruption.SWAP, split, n, seed=seed, prepend_bos=prepend_bos)
            for seed, split in enumerate(SPLITS)
        )
        chosen_on, scored_on = (from_task(model, pairs) for pairs in drawn)
        yield Case(title, (chosen_on, scored_on), means=False)
    brackets = BracketTask.of(model)
    chosen_on, scored_on = (
        from_task(model, brackets.pairs(model, split, n, seed=0, prepend_bos=prepend_bos)) for split in SPLITS
    )
    for means in (True, False):
        outside = "means" if means else "corrupted"
        yield Case(f"brackets, {outside} outside", (chosen_on, scored_on), means=means)


def feature_case(
    model: LanguageModel, dictionaries: Mapping[Site, Dictionary], contexts: Int[Tensor, "contexts pos"], n: int
) -> Case:
    """A feature of the last residual that closes brackets."""
    last = max(Covered.RESIDUAL.of(dictionaries))
    saes = {last: dictionaries[last]}
    atlas, held = (survey(model, saes, part) for part in contexts.split(len(contexts) // 2)[:2])
    feature = default_target(model, saes, atlas, CLOSING_BRACKETS)
    target = FeatureTarget(feature, saes[last])
    chosen_on, scored_on = (TargetPrompts(target, text.examples(feature, n)) for text in (atlas, held))
    return Case(f"a bracket closes, {feature}", (chosen_on, scored_on), means=True)


def with_errors(runs: CircuitRuns, chosen: Sequence[FeatureId], price: int) -> list[FeatureId]:
    """The members that are left, with error terms at a price in place of others; `runs.errors_kept` says which."""
    search, n = Search(runs, Choice()), len(chosen)
    mask = torch.tensor([name in set(chosen) for name in search.names])
    missing = search.missing(mask)
    while len(runs.errors_kept) < len(runs.sites) and n > price:
        effect, kept, n = search.first_order(search.members(mask), (1.0,)), runs.errors_kept, n - price
        weakest = effect.masked_fill(~mask, torch.inf).argsort()[: max(0, int(mask.sum()) - n)]
        fewer, tried = mask.index_fill(0, weakest, value=False), {}
        for site in set(runs.sites) - kept:
            runs.errors_kept = kept | {site}
            tried[site] = search.missing(fewer)
        best = min(tried, key=tried.__getitem__)
        if tried[best] >= missing:
            runs.errors_kept = kept
            break
        runs.errors_kept = kept | {best}
        mask = search.exchanged(fewer, n)
        missing = search.missing(mask)
    return [name for name, here in zip(search.names, mask.tolist(), strict=True) if here]


def measure(
    report: Report,
    model: LanguageModel,
    dictionaries: Mapping[Site, Dictionary],
    case: Case,
    contexts: Tensor,
    options: argparse.Namespace,
) -> None:
    """A row for each way and size."""
    saes = Covered(options.stream).of(dictionaries)
    saes = {site: saes[site] for site in covered_sites(saes, case.prompts[0].target)}
    scales = []
    for prompts in case.prompts:
        means = case.means or prompts.corrupted is None
        ablation = (
            MeanAblation.over_text(model, saes, contexts) if means else default_ablation(model, saes, prompts, contexts)
        )
        scales.append(Scale(CircuitRuns(model, saes, prompts.target, prompts.examples, ablation)))
    chosen_on, held = scales
    ceiling = held.share(held.runs.values([held.runs.everything()], Errors.ABLATED)[0]).value
    alone = held.share(held.runs.values([{}], Errors.KEPT)[0]).value
    report.say(
        f"### {case.title}: {len(chosen_on.runs)} prompts chose, {len(held.runs)} others scored; ceiling {ceiling:.2f} "
        f"of the model, error terms alone {alone:.2f}"
    )
    rows = []
    for size in options.sizes:
        for name in options.ways:
            began, way = time.process_time(), WAYS[name]
            chosen = (
                strongest(attribution(chosen_on.runs), size) if way is None else prune(chosen_on.runs, size, choice=way)
            )
            if name == "errors":
                chosen = with_errors(chosen_on.runs, chosen, options.price)
            held.runs.errors_kept = chosen_on.runs.errors_kept
            took, members = time.process_time() - began, by_site(chosen)
            values = held.runs.values([members], Errors.ABLATED)[0]
            share = held.share(values)
            seen = chosen_on.share(chosen_on.runs.values([members], Errors.ABLATED)[0]).value
            kept = held.share(held.runs.values([members], Errors.KEPT)[0]).value
            figures = (f"{share.value / ceiling:.2f}", f"{share}", f"{seen:.2f}", f"{kept:.2f}", f"{took:.0f}")
            sites = sorted(map(str, held.runs.errors_kept))
            rows.append((f"{len(chosen)}" + f" and {len(sites)} error terms" * bool(sites), name, *figures))
            print(*sites, file=sys.stderr)
            held.runs.errors_kept = chosen_on.runs.errors_kept = frozenset()
            print(*rows[-1], sep="; ", file=sys.stderr, flush=True)
    head = ("nodes", "chosen by", "of the ceiling", "of the model", "where they were chosen", "errors kept", "seconds")
    report.table(head, rows)


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a set of storybook, with dictionaries of resid_post for the feature")
    parser.add_argument("--cases", nargs="+", default=["IOI", "brackets", "a bracket"], help="how their titles begin")
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=[*WAYS])
    parser.add_argument("--sizes", nargs="+", type=int, default=[20, 60, 100, 200], metavar="N")
    parser.add_argument("--prompts", type=int, default=64, metavar="N", help="prompts that choose, and that score")
    parser.add_argument("--price", type=int, default=5, metavar="N", help="nodes that an error term counts as")
    parser.add_argument("--stream", default="written", choices=[*map(str, Covered)])
    parser.add_argument("--record", action="store_true", help="append the figures to RESULTS.md")
    options = parser.parse_args(arguments)
    report, saved = Report(), load_set(options.folder)
    model, dictionaries, bos = load_model(saved.model), saved.dictionaries, saved.text.prepend_bos
    contexts = saved.text.contexts(model)
    wanted = tuple(options.cases)
    for case in tasks(model, options.prompts, prepend_bos=bool(bos)):
        if case.title.startswith(wanted):
            measure(report, model, dictionaries, case, contexts[:64], options)
    if "a bracket closes".startswith(wanted):
        case = feature_case(model, dictionaries, contexts[:800], options.prompts)
        measure(report, model, dictionaries, case, contexts[:64], options)
    if options.record:
        shown = sys.argv[1:] if arguments is None else arguments
        record(Path(__file__).with_name("RESULTS.md"), report, shown, script="circuit_choice.py")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
