"""Two circuits of `storybook` held against the grammar, and how much of their targets they carry.

    subrank demo                                              trains the dictionaries that are read here
    python benchmarks/circuit_cases.py demo/dictionaries      a closing bracket, and the answer of IOI

For each case 60 features that suffice are sought at the nearest 1, 2, 3 ... sites, on prompts of the selection; shown
is, on others, their faithfulness with error terms ablated, everything else at these sites being ablated, beside the
ceiling (all latents), the circuit of as many features per site that has the largest first-order effects in the
untouched model, on the selection too, and the best of 20 random circuits of equal density. A second circuit is
discovered by recursion down to layer 0; of its features those are listed that agree best with what the grammar says of
tokens (F1, label and threshold chosen on other documents), and that say it on the prompts. Brackets: mean ablation;
IOI: the codes of the prompt with swapped roles; once with three names, once with forty, other names in the prompts that
are scored. `--record` appends all of it to RESULTS.md, `--draw DIR` draws the circuits.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from label_agreement import agreements
from report import Report, record
from storybook_truth import truth
from torch import Tensor

from circuits.discovery.assembly import assemble
from circuits.discovery.default_target import CLOSING_BRACKETS, default_target
from circuits.discovery.edges import EdgeConfig
from circuits.discovery.prompts import PromptSource, from_task
from circuits.discovery.pruning import prune_at
from circuits.discovery.recursive import discover
from circuits.discovery.target_causes import CauseSearch, DiscoveryConfig
from circuits.drawing import dot_source, draw
from circuits.effects.target_prompts import TargetPrompts
from circuits.effects.targets import FeatureTarget
from circuits.features.atlas import Examples, ExampleSource, FeatureAtlas, survey
from circuits.scoring.ablations import default_ablation
from circuits.scoring.attribution import attribution, attribution_circuit
from circuits.scoring.circuit_runs import CircuitRuns, Errors, by_site, covered_sites
from circuits.scoring.controls import random_circuits
from circuits.scoring.faithfulness import Scale
from editing.tasks.ioi import Corruption, IOITask
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel, load_model
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site
from sae_core.storage import load_set

NAMES = ("Mary", "John", "Tom")


@dataclass(frozen=True, eq=False)
class Case:
    """What is explained, and what its features are expected to be."""

    title: str
    kinds: tuple[str, ...]
    """Of the grammar's labels."""
    chosen_on: TargetPrompts
    scored_on: TargetPrompts
    source: ExampleSource


def cases(
    model: LanguageModel,
    dictionaries: dict[Site, Dictionary],
    atlas: FeatureAtlas,
    held: FeatureAtlas,
    *,
    prepend_bos: bool,
) -> Iterator[Case]:
    """The closing bracket, and IOI with few names and with many."""
    feature = default_target(model, dictionaries, atlas, CLOSING_BRACKETS)
    bracket = FeatureTarget(feature, dictionaries[feature.site])
    seen, other = (TargetPrompts(bracket, text.examples(feature, 32)) for text in (atlas, held))
    yield Case(f"a bracket closes now, {feature}", ("open", "inside", "innermost"), seen, other, atlas)
    everyone = IOITask.of(model)
    few = replace(everyone, names={split: [*NAMES] for split in everyone.names})
    for task, who in ((few, "three names"), (everyone, "forty names, other ones scored")):
        both = []
        for split in ("selection", "test"):
            pairs = task.pairs(model, Corruption.SWAP, split, 64, seed=0, prepend_bos=prepend_bos)
            both.append(from_task(model, pairs))
        yield Case(f"IOI, {who}", ("name", "role"), *both, PromptSource(model, dictionaries, both[0].examples))


def carried(
    report: Report,
    search: CauseSearch,
    case: Case,
    contexts: Tensor,
    held: FeatureAtlas,
    n: int,
) -> None:
    """A row for each number of sites that are left to a circuit."""
    model, dictionaries, rows = search.model, search.dictionaries, []
    sites = covered_sites(dictionaries, case.chosen_on.target)
    for cover in range(1, len(sites) + 1):
        covered = {site: dictionaries[site] for site in sites[-cover:]}
        chosen = prune_at(model, covered, case.chosen_on, contexts, n, cover=cover)
        seen, runs = (
            CircuitRuns(model, covered, p.target, p.examples, default_ablation(model, covered, p, contexts))
            for p in (case.chosen_on, case.scored_on)
        )
        scale, density = Scale(runs), {site: held.sites[site].density for site in covered}
        members = by_site(chosen)
        drawn = random_circuits(members, density, 20, generator=generator_for(0, "cases", case.title, cover))
        circuits = [runs.everything(), members, attribution_circuit(attribution(seen), members), *drawn]
        shares = [scale.share(v) for v in runs.values(circuits, Errors.ABLATED)]
        ceiling, own_share, first = (share.value for share in shares[:3])
        rows.append(
            (
                f"{sites[-cover]} to {sites[-1]}" if cover > 1 else str(sites[-1]),
                f"{len(chosen)}",
                f"{shares[1]}",
                f"{ceiling:.3f}",
                f"{own_share / ceiling:.2f}",
                f"{first / ceiling:.2f}",
                f"{max(share.value for share in shares[3:]) / ceiling:.2f}",
            )
        )
    head = ("sites left to the circuit", "nodes", "faithfulness", "ceiling", "of it")
    report.table((*head, "first order", "best of 20 random"), rows)


@torch.no_grad()
def strongest_on(search: CauseSearch, feature: FeatureId, examples: Examples) -> float:
    """The feature's largest activation on the prompts that the circuit is of, up to their ends."""
    h = search.model.record(examples.tokens, [feature.site])[feature.site]
    f = search.dictionaries[feature.site].encode(h)[..., feature.index].cpu()
    seen = search.model.content(examples.tokens) & (torch.arange(f.shape[1]) <= examples.end[:, None])
    return float(f[seen].max())


def run(report: Report, folder: Path, n_nodes: int, out: Path | None) -> None:
    """All cases."""
    saved = load_set(folder)
    model, dictionaries = load_model(saved.model), saved.dictionaries
    contexts = saved.text.contexts(model)
    searched, other = contexts[:1000], contexts[1000:1400]
    atlas, held = survey(model, dictionaries, searched), survey(model, dictionaries, other)
    grammar = truth(model, 600)
    everything = [FeatureId(site, j) for site, d in dictionaries.items() for j in range(len(d.directions))]
    fits = {a.feature: a for a in agreements(model, dictionaries, everything, grammar.tokens, grammar.labels)}
    for case in cases(model, dictionaries, atlas, held, prepend_bos=saved.text.prepend_bos):
        target, examples = case.chosen_on.target, case.chosen_on.examples
        config = DiscoveryConfig(EdgeConfig(n_null=200), 32, min_examples=8, max_targets=24)
        search = CauseSearch(model, dictionaries, case.source, config)
        report.say(f"### {case.title}: {len(case.scored_on.examples)} prompts scored")
        carried(report, search, case, searched, held, n_nodes)
        steps = list(discover(search, target, examples))
        graph = assemble(atlas, target.node, steps, {"ablation": "zero"})
        members = [node.id for node in graph.nodes if isinstance(node.id, FeatureId) and node.id != target.node]
        fitting = {f: a for f, a in fits.items() if a.f1 >= 0.8 and a.label.split(":")[0] in case.kinds}
        said = {f for f in members if f in fitting and strongest_on(search, f, examples) > fits[f].threshold}
        best = sorted((fitting[f] for f in said), key=lambda a: (-a.f1, str(a.feature)))
        report.say(
            f"Recursion finds {len(members)} features; {len(best)} of them agree with a label of "
            f"{', '.join(case.kinds)} at F1 0.8 or more and say so on these prompts ({len(best) / len(members):.0%}; "
            f"of all latents {len(fitting) / len(fits):.0%} agree so with one): "
            + "; ".join(f"{a.feature} {a.label} {a.f1:.2f}" for a in best)
            + "."
        )
        report.say()
        if out:
            print(*draw(dot_source(graph), out / case.title.replace(" ", "-").replace(",", "")).paths, sep="\n")


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo/dictionaries"), help="a set of storybook")
    parser.add_argument("--nodes", type=int, default=60, help="nodes at the covered sites")
    parser.add_argument("--draw", type=Path, default=None, metavar="DIR", help="draw the circuits found by recursion")
    parser.add_argument("--record", action="store_true", help="append the figures to RESULTS.md")
    options = parser.parse_args(arguments)
    report = Report()
    torch.set_num_threads(2)
    run(report, options.folder, options.nodes, options.draw)
    if options.record:
        shown = [str(options.folder), *(["--nodes", str(options.nodes)] if options.nodes != 60 else []), "--record"]
        record(Path(__file__).with_name("RESULTS.md"), report, shown, script="circuit_cases.py")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
