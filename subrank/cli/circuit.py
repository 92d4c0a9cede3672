"""`subrank circuit`: the circuit of a feature, a logit or a task, discovered and drawn."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subrank.cli.arguments import at_least
from subrank.cli.explorer import pages_into
from subrank.cli.parsers import Verbs
from subrank.cli.request import After, circuit_request
from subrank.cli.results import save_result
from subrank.cli.sets import open_set
from subrank.cli.terminal import report, say

if TYPE_CHECKING:
    import torch

    from circuits.discovery.circuit import Circuit
    from circuits.discovery.request import CircuitRequest, ResolvedRequest
    from circuits.discovery.target_causes import DiscoveryConfig
    from circuits.evaluation import CircuitEvaluation
    from circuits.graph import FeatureGraph
    from editing.set_quality import SetQuality
    from sae_core.model.language_model import LanguageModel
    from sae_core.storage import DictionarySet


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
    how.add_argument("--max-targets", type=int, default=15, help="targets searched for causes, at most")
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
    from circuits.discovery.target_causes import MIN_EXAMPLES, check_target
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
    after = After(options.contexts, options.held, options.draws, options.cards, names)
    request = circuit_request(options)
    out, model, dictionaries, contexts, measured = open_set(options)
    if feature:
        check_target(model, dictionaries.dictionaries, feature)
    circuit_into(out, model, dictionaries, contexts, measured, request, config, after, argv=vars(options))
    say(f"results: {out}")


def discovery_config(options: argparse.Namespace) -> "DiscoveryConfig":
    """The settings that the options say."""
    from circuits.discovery import edges
    from circuits.discovery.target_causes import DiscoveryConfig, Reach

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
    request: "CircuitRequest",
    config: "DiscoveryConfig",
    after: After,
    *,
    argv: dict[str, Any],
    assets: Path | None = None,
) -> "tuple[FeatureGraph, str | None, CircuitEvaluation | None]":
    """Discover a circuit, score it, draw it; write numbers, pictures, `circuit.html` and the page in `explore/`."""
    from circuits.discovery.circuit import circuit_of, circuit_steps, sufficient_features
    from circuits.discovery.default_target import CLOSING_BRACKETS
    from circuits.discovery.request import resolve
    from circuits.discovery.steps_file import STEPS, remembered, steps_card
    from circuits.drawing import draw
    from circuits.features.atlas import survey
    from sae_core.codec import to_plain
    from sae_core.files import write_json
    from subrank.pages.circuit_page import circuit_section, evaluation_section
    from subrank.pages.evaluation_page import dictionaries_section
    from subrank.pages.page import link, titled, write_page

    searched = contexts[: after.n_contexts]
    held = contexts[after.n_contexts : after.n_contexts + after.n_held]
    if dictionaries.model == "storybook":
        request = replace(request, predict=CLOSING_BRACKETS)
    say(f"looking at every feature on {len(searched)} contexts")
    atlas = survey(model, dictionaries.dictionaries, searched, top=max(64, 4 * config.n_examples))
    resolved = resolve(model, dictionaries, atlas, request, config)
    target, examples = resolved.target, resolved.examples
    if examples is not None:
        say(f"{target.node}: {float(examples.activation.mean()):+.2f} on average over {len(examples)} prompts")
    if request.n_nodes:
        say(f"looking for {request.n_nodes} features that suffice")
    sufficient, steps = sufficient_features(resolved), []
    card = steps_card(resolved, sufficient)
    for step in remembered(out / STEPS, card, lambda done: circuit_steps(resolved, sufficient, done=done)):
        steps.append(step)
        say(f"  {step.target} <- " + (", ".join(f"{e.cause} {e.effect:+.2f}" for e in step.edges) or "nothing strong"))
    circuit = circuit_of(resolved, sufficient, steps)
    graph = named(circuit.graph, after.names)
    evaluation = evaluated(resolved, circuit, held, after.n_draws) if after.n_held else None
    numbers = {"dictionaries": measured.to_json(), "circuit": to_plain(graph)}
    save_result(out, numbers | ({"judgement": evaluation.to_json()} if evaluation else {}), model, argv)
    write_json(out / "circuit.json", to_plain(graph))
    if problem := draw(graph, out).problem:
        say(problem)
    svg = (out / "circuit.svg").read_text(encoding="utf-8") if (out / "circuit.svg").is_file() else None
    if after.n_cards:
        root = {} if examples is None else {target.node: (target, examples)}
        pages_into(out, resolved.search, contexts, graph, root, after)
    body = link("explore/index.html", "Explore it: cards, examples, all features") if after.n_cards else ""
    body += circuit_section(graph, svg)
    if evaluation:
        body += titled("How good it is", evaluation_section(evaluation))
    body += titled("The dictionaries", dictionaries_section(measured))
    write_page(out / "circuit.html", f"The circuit of {graph.target}", body, assets=assets)
    return graph, svg, evaluation


def named(graph: "FeatureGraph", names: "Mapping[str, str]") -> "FeatureGraph":
    """The graph with the names that somebody gave its nodes."""
    nodes = tuple(replace(node, name=names.get(str(node.id), node.name)) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def evaluated(
    resolved: "ResolvedRequest", circuit: "Circuit", held: "torch.Tensor", n_draws: int
) -> "CircuitEvaluation | None":
    """How good the circuit is on contexts that were not searched; None, with a line, where it cannot be scored."""
    from circuits.discovery.target_causes import MIN_EXAMPLES
    from circuits.evaluation import evaluate_circuit
    from circuits.features.atlas import survey
    from sae_core.errors import UserError

    if len(held) < MIN_EXAMPLES:
        say(f"not scored: {len(held)} contexts of the text were not searched; give more text or fewer --contexts")
        return None
    search = resolved.search
    atlas = survey(search.model, search.dictionaries, held, top=max(64, 2 * search.config.n_examples))
    try:
        evaluation = evaluate_circuit(resolved, circuit, atlas, n_draws=n_draws, on_progress=report)
    except UserError as error:
        say(f"not scored: {error}")
        return None
    for line in evaluation.lines():
        say(f"  {line}")
    return evaluation
