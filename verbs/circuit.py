"""`subrank circuit`: the circuit of a feature, discovered and drawn."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from verbs.options import at_least
from verbs.parsers import Verbs
from verbs.results import save_result
from verbs.sets import open_set
from verbs.terminal import say

if TYPE_CHECKING:
    from circuits.graph import FeatureGraph


def add(verbs: Verbs) -> None:
    """Declare `subrank circuit`."""
    parser = verbs.add_on_set("circuit", run, "discover the circuit of a feature and draw it")
    parser.add_argument("--target", default=None, help="e.g. 5_2079 or mlp_out.5_2079; by default chosen")
    parser.add_argument("--keep", type=int, default=3, help="causes kept per feature")
    parser.add_argument("--examples", type=int, default=16, help="activating examples per feature")
    parser.add_argument("--max-targets", type=int, default=15, help="features asked for their causes")
    parser.add_argument("--contexts", type=int, default=1000, help="contexts searched for examples")


def run(options: argparse.Namespace) -> None:
    """`subrank circuit`."""
    from circuits.discovery import DiscoveryConfig, check_target
    from sae_core.sites import FeatureId

    target = FeatureId.parse(options.target) if options.target else None
    at_least("--keep", options.keep, 1)
    at_least("--examples", options.examples, 16)
    at_least("--max-targets", options.max_targets, 1)
    at_least("--contexts", options.contexts, 16)
    out, model, dictionaries, contexts, measured = open_set(options)
    if target:
        check_target(dictionaries.dictionaries, target)
    config = DiscoveryConfig(options.keep, options.examples, options.max_targets)
    contexts = contexts[: options.contexts]
    circuit_into(out, model, dictionaries, contexts, measured, target, config, argv=vars(options))
    say(f"results: {out}")


def circuit_into(
    out: Path, model, dictionaries, contexts, measured, target, config, *, argv, assets=None
) -> "tuple[FeatureGraph, str | None]":
    """Discover a circuit; write `result.json`, `circuit.json`, the drawings and `circuit.html`."""
    from circuits.discovery import assemble, discover
    from circuits.drawing import draw
    from circuits.features import default_target, survey
    from circuits.page import circuit_section, dictionaries_section, write_page
    from sae_core.files import write_json

    say(f"looking at every feature on {len(contexts)} contexts")
    atlas = survey(model, dictionaries.dictionaries, contexts, top=max(64, 2 * config.n_examples))
    target = target or default_target(
        model, dictionaries.dictionaries, atlas, storybook=dictionaries.model == "storybook"
    )
    asked = []
    for step in discover(model, dictionaries.dictionaries, atlas, target, config):
        asked.append(step)
        say(f"  {step.target} <- " + (", ".join(f"{e.cause} {e.effect:+.2f}" for e in step.edges) or "nothing strong"))
    graph = assemble(model, dictionaries.dictionaries, atlas, target, asked)
    save_result(out, {"dictionaries": measured.to_json(), "circuit": graph.to_json()}, model, argv)
    write_json(out / "circuit.json", graph.to_json())
    for made in draw(graph, out):
        if isinstance(made, str):
            say(made)
    svg = (out / "circuit.svg").read_text(encoding="utf-8") if (out / "circuit.svg").is_file() else None
    body = circuit_section(graph, svg) + dictionaries_section(measured)
    write_page(out / "circuit.html", f"The circuit of {target}", body, assets=assets)
    return graph, svg
