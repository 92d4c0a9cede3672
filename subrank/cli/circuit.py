"""`subrank circuit`: the circuit of a feature, a logit or a task, discovered and drawn."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subrank.cli.arguments import at_least
from subrank.cli.explorer import pages_into
from subrank.cli.parsers import Verbs
from subrank.cli.request import After, Question, Search, ablation_of, other_prompts, question
from subrank.cli.results import save_result
from subrank.cli.sets import open_set
from subrank.cli.terminal import report, say

if TYPE_CHECKING:
    import torch

    from circuits.discovery.recursive import Asked, Discovery, DiscoveryConfig
    from circuits.effects.targets import Target
    from circuits.evaluation import CircuitEvaluation
    from circuits.features.atlas import Examples
    from circuits.graph import FeatureGraph
    from editing.set_quality import SetQuality
    from sae_core.model.language_model import LanguageModel
    from sae_core.sites import FeatureId
    from sae_core.storage import DictionarySet

STEPS = "steps.jsonl"


def add(verbs: Verbs) -> None:
    """Declare `subrank circuit`."""
    parser = verbs.add_on_set("circuit", run, "discover the circuit of a feature, a logit or a task, and draw it")
    what = parser.add_argument_group("what is explained")
    what.add_argument(
        "--target", default=None, help='5_2079, mlp_out.5_2079, "logit: she - he" or "task: ioi"; by default chosen'
    )
    what.add_argument("--prompts", type=Path, default=None, help="a prompt to a line, for a logit (default: the text)")
    what.add_argument("--examples", type=int, default=16, help="examples per target")
    what.add_argument("--spread", action="store_true", help="examples over the range of activations, not the strongest")
    what.add_argument("--contexts", type=int, default=1000, help="contexts searched for examples")
    how = parser.add_argument_group("how causes are found")
    how.add_argument("--keep", type=int, default=3, help="causes kept per target and site; 0 keeps all")
    how.add_argument("--min-effect", type=float, default=0.01, help="edges weaker than this are not kept")
    how.add_argument("--max-targets", type=int, default=15, help="targets asked for their causes")
    how.add_argument("--depth", type=int, default=None, help="edges from the target down, at most")
    how.add_argument("--ablation", choices=("zero", "mean", "resample"), default="zero", help="what causes are set to")
    how.add_argument(
        "--reach", choices=("adjacent", "all"), default="adjacent", help="sites at which causes are sought"
    )
    how.add_argument(
        "--nodes", type=int, default=0, help="not by recursion (--depth, --max-targets): so many features that suffice"
    )
    how.add_argument("--null", type=int, default=1000, help="random directions an edge is held against; 0: none")
    search = how.add_mutually_exclusive_group()
    search.add_argument("--exhaustive", action="store_true", help="ablate every feature over several blocks, too")
    search.add_argument("--screen-only", action="store_true", help="ablate nothing: first-order effects, at once")
    then = parser.add_argument_group("what is made of the circuit")
    then.add_argument("--held", type=int, default=400, help="contexts on which it is scored; 0: it is not")
    then.add_argument("--cover", type=int, default=2, help="sites below the target that are left to the circuit alone")
    then.add_argument("--draws", type=int, default=3, help="draws of examples it is found again on; 0: it is not")
    then.add_argument("--cards", type=int, default=300, help="contexts read for the page's feature cards; 0: no page")
    then.add_argument("--names", type=Path, default=None, help="a names.json that the page saved")


def run(options: argparse.Namespace) -> None:
    """`subrank circuit`."""
    from circuits.discovery.recursive import MIN_EXAMPLES, check_target
    from sae_core.sites import FeatureId
    from subrank.pages.names import read_names

    for name, least in (("keep", 0), ("examples", MIN_EXAMPLES), ("contexts", MIN_EXAMPLES), ("max_targets", 1)):
        at_least(f"--{name.replace('_', '-')}", getattr(options, name), least)
    for name, least in (("held", 0), ("draws", 0), ("cards", 0), ("cover", 1), ("nodes", 0)):
        at_least(f"--{name}", getattr(options, name), least)
    if options.depth is not None:
        at_least("--depth", options.depth, 1)
    of_feature = options.target and not options.target.startswith(("logit:", "task:"))
    feature = FeatureId.parse(options.target) if of_feature else None
    names = read_names(options.names) if options.names else {}
    config = discovery_config(options)
    after = After(options.held, options.cover, options.draws, options.cards, names, options.nodes)
    out, model, dictionaries, contexts, measured = open_set(options)
    if feature:
        check_target(model, dictionaries.dictionaries, feature)
    how = Search(options.target, options.prompts, options.ablation, options.spread, options.contexts, options.seed)
    circuit_into(out, model, dictionaries, contexts, measured, how, config, after, argv=vars(options))
    say(f"results: {out}")


def discovery_config(options: argparse.Namespace) -> "DiscoveryConfig":
    """The settings that the options say."""
    from circuits.discovery import edges
    from circuits.discovery.recursive import DiscoveryConfig, Reach

    kinds = {(True, False): edges.Search.EXHAUSTIVE, (False, True): edges.Search.FIRST_ORDER}
    search = kinds.get((options.exhaustive, options.screen_only), edges.Search.SCREENED)
    own = edges.EdgeConfig(options.keep or None, options.min_effect, search, options.null, seed=options.seed)
    return DiscoveryConfig(
        own, options.examples, max_targets=options.max_targets, depth=options.depth, reach=Reach(options.reach)
    )


def circuit_into(
    out: Path,
    model: "LanguageModel",
    dictionaries: "DictionarySet",
    contexts: "torch.Tensor",
    measured: "SetQuality",
    how: Search,
    config: "DiscoveryConfig",
    after: After,
    *,
    argv: dict[str, Any],
    assets: Path | None = None,
) -> "tuple[FeatureGraph, str | None, CircuitEvaluation | None]":
    """Discover a circuit, score it, draw it; write numbers, pictures, `circuit.html` and the page in `explore/`."""
    from circuits.discovery.recursive import Discovery, assemble
    from circuits.discovery.sampling import OverRange
    from circuits.drawing import draw
    from circuits.features.atlas import survey
    from sae_core.codec import to_plain
    from sae_core.files import write_json
    from subrank.pages.circuit_page import circuit_section, evaluation_section
    from subrank.pages.evaluation_page import dictionaries_section
    from subrank.pages.page import link, titled, write_page

    own, searched = dictionaries.dictionaries, contexts[: how.n_contexts]
    held = contexts[how.n_contexts : how.n_contexts + after.n_held]
    say(f"looking at every feature on {len(searched)} contexts")
    atlas = survey(model, own, searched, top=max(64, 4 * config.n_examples))
    about = question(model, dictionaries, searched, atlas, how, config)
    target, examples, source = about.target, about.examples, about.source
    if examples is not None:
        config = replace(config, least=1)
        say(f"{target.node}: {float(examples.activation.mean()):+.2f} on average over {len(examples)} prompts")
    elif how.spread:
        source = OverRange(model, own, searched, how.seed)
    ablations = {site: a for site, d in own.items() if (a := ablation_of(how, model, d, searched, site)) is not None}
    search = Discovery(model, own, source, config, ablations)
    chosen = sufficing(search, about, searched, after) if after.n_nodes else []
    found = {"how": str(how), "model": model.fingerprint(), "nodes": [str(feature) for feature in chosen]}
    asked = []
    for step in remembered(out / STEPS, search, target, examples, found, chosen):
        asked.append(step)
        say(f"  {step.target} <- " + (", ".join(f"{e.cause} {e.effect:+.2f}" for e in step.edges) or "nothing strong"))
    graph = named(
        assemble(model, own, atlas, target.node, asked, how_found(how, config, about, chosen, after), chosen),
        after.names,
    )
    judgement = judged(search, dictionaries, target, graph, chosen, held, how, after)
    numbers = {"dictionaries": measured.to_json(), "circuit": to_plain(graph)}
    save_result(out, numbers | ({"judgement": judgement.to_json()} if judgement else {}), model, argv)
    write_json(out / "circuit.json", to_plain(graph))
    if problem := draw(graph, out).problem:
        say(problem)
    svg = (out / "circuit.svg").read_text(encoding="utf-8") if (out / "circuit.svg").is_file() else None
    if after.n_cards:
        own_examples = {} if examples is None else {target.node: (target, examples)}
        pages_into(out, search, contexts, graph, own_examples, after)
    body = link("explore/index.html", "Explore it: cards, examples, all features") if after.n_cards else ""
    body += circuit_section(graph, svg)
    if judgement:
        body += titled("How good it is", evaluation_section(judgement))
    body += titled("The dictionaries", dictionaries_section(measured))
    write_page(out / "circuit.html", f"The circuit of {graph.target}", body, assets=assets)
    return graph, svg, judgement


def how_found(
    how: Search, config: "DiscoveryConfig", about: Question, chosen: "Sequence[FeatureId]", after: After
) -> dict[str, Any]:
    """What a graph says of how it was found."""
    facts = {"ablation": f"{how.ablation}, at all positions up to the target's, error term kept"}
    facts |= {"reach": str(config.reach), "search": str(config.edges.search), "random_directions": config.edges.n_null}
    facts |= {"nodes": f"{len(chosen)} that suffice" if chosen else "found by recursion"}
    if chosen:
        outside = "the corrupted prompts' codes" if about.corrupted is not None else "means"
        facts |= {"among": "members", "chosen_against": f"all else at {after.cover} sites set to {outside}, errors too"}
    return facts


def sufficing(search: "Discovery", about: Question, contexts: "torch.Tensor", after: After) -> "list[FeatureId]":
    """The features that suffice, in place of recursion."""
    from circuits.discovery.pruning import sufficient_at
    from sae_core.errors import UserError

    given = about.examples
    if given is None:
        given = search.source.examples(about.target.node, search.config.n_examples)
    if not len(given):
        raise UserError(f"{about.target.node} is never active on this text; give more text or another target")
    say(f"looking for {after.n_nodes} features that suffice")
    asked = (search, about.target, given, contexts, after.n_nodes)
    return sufficient_at(*asked, cover=after.cover, corrupted=about.corrupted)


def named(graph: "FeatureGraph", names: "Mapping[str, str]") -> "FeatureGraph":
    """The graph with the names that somebody gave its nodes."""
    nodes = tuple(replace(node, name=names.get(str(node.id), node.name)) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def judged(
    search: "Discovery",
    dictionaries: "DictionarySet",
    target: "Target",
    graph: "FeatureGraph",
    chosen: "Sequence[FeatureId]",
    held: "torch.Tensor",
    how: Search,
    after: After,
) -> "CircuitEvaluation | None":
    """How good the circuit is on contexts or prompts that were not searched; None, with a line, where nothing is."""
    from circuits.discovery.recursive import MIN_EXAMPLES
    from circuits.evaluation import HeldOut, evaluate_circuit
    from circuits.features.atlas import survey
    from sae_core.errors import UserError
    from sae_core.sites import FeatureId

    if not after.n_held:
        return None
    model, own = search.model, search.dictionaries
    if len(held) < MIN_EXAMPLES:
        say(f"not scored: {len(held)} contexts of the text were not searched; give more text or fewer --contexts")
        return None
    atlas = survey(model, own, held, top=max(64, 2 * search.config.n_examples))
    try:
        if isinstance(target.node, FeatureId):
            prompts, corrupted = atlas.examples(target.node, 2 * search.config.n_examples), None
        else:
            target, prompts, corrupted = other_prompts(model, dictionaries, held, how, search.config)
        seen = HeldOut(prompts, corrupted, atlas, held, atlas)
        more = {"cover": after.cover, "chosen": chosen, "n_nodes": after.n_nodes}
        more |= {"seeds": range(after.n_draws), "seed": how.seed}
        found = evaluate_circuit(search, target, graph, seen, **more, on_progress=report)
    except UserError as error:
        say(f"not scored: {error}")
        return None
    for line in found.lines():
        say(f"  {line}")
    return found


def remembered(
    path: Path,
    search: "Discovery",
    target: "Target",
    examples: "Examples | None",
    about: dict[str, Any],
    chosen: "Sequence[FeatureId]" = (),
) -> "Iterator[Asked]":
    """The steps of a search, each written down as it is found; those of an interrupted run are taken over.

    Where features were `chosen`, these are asked, and no others. What `path` holds of another search is written over.
    """
    from circuits.discovery.recursive import Asked
    from circuits.scoring.faithfulness import by_site
    from sae_core.files import write_text

    card = json.dumps(about | {"target": str(target.node), "config": asdict(search.config)}, sort_keys=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    done = []
    if lines[:1] == [card]:
        for line in lines[1:]:
            try:
                done.append(Asked.from_json(json.loads(line)))
            except (ValueError, KeyError):  # cut off while it was written
                break
    kept = [card]
    found = (
        search.within(by_site(chosen), target, examples, done) if chosen else search.run(target, examples, done=done)
    )
    for step in found:
        yield step
        kept.append(json.dumps(step.to_json()))
        write_text(path, "\n".join(kept) + "\n")
    path.unlink(missing_ok=True)
