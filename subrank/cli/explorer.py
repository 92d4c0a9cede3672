"""The folder to explore a circuit in, and the files for other people's viewers."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subrank.cli.terminal import report, say

if TYPE_CHECKING:
    import torch

    from circuits.discovery.edge_examples import Evidence
    from circuits.discovery.target_causes import CauseSearch
    from circuits.effects.targets import Target
    from circuits.features.atlas import Examples
    from circuits.features.catalogue import Catalogue
    from circuits.graph import FeatureGraph, NodeId
    from subrank.cli.request import After

Questions = "Mapping[NodeId, tuple[Target, Examples]]"


def pages_into(
    out: Path, search: "CauseSearch", contexts: "torch.Tensor", graph: "FeatureGraph", own: Questions, after: "After"
) -> None:
    """Write `explore/`, `node_link.json` and `neuronpedia/`; `own` are targets that have prompts of their own."""
    from circuits.discovery.edge_examples import Evidence
    from circuits.exports import node_link
    from circuits.features.catalogue import read_catalogue
    from sae_core.files import write_json
    from subrank.pages.explorer import explore

    n = min(after.n_cards, max(1, 4 * len(contexts) // 5))
    training, held = contexts[:n], contexts[n : n + max(2, n // 4)]
    say(f"making cards of all features from {len(training)} contexts")
    seed = search.config.edges.seed
    catalogue = read_catalogue(search.model, search.dictionaries, training, held, seed=seed, on_progress=report)
    alive = [f for f in graph.features() if catalogue.tally.sites[f.site].active[f.index]]
    full = {card.feature: card for card in catalogue.full(sorted(alive))} if alive else {}
    evidence = Evidence(
        search.model, search.dictionaries, lambda node: own.get(node) or _asked(search, node), search.ablations
    )
    behind = {(e.cause, e.target): [one.to_json() for one in evidence.of(e)] for e in graph.edges}
    page = explore(out / "explore", graph, _cards(catalogue, full), edge_examples=behind, names=after.names)
    write_json(out / "node_link.json", node_link(graph))
    write_json(out / "neuronpedia" / "graph.json", on_its_strongest_example(search, graph, evidence))
    say(f"open {page}")


def _asked(search: "CauseSearch", node: "NodeId") -> "tuple[Target, Examples]":
    """A feature with the examples that its causes were sought on."""
    from circuits.effects.targets import FeatureTarget

    return FeatureTarget(node, search.dictionaries[node.site]), search.source.examples(node, search.config.n_examples)


def _cards(catalogue: "Catalogue", full: Mapping[Any, Any]) -> Iterator[dict[str, Any]]:
    """Every feature's card, the full one where there is one."""
    for site in sorted(catalogue.dictionaries):
        for card in catalogue.light(site):
            yield full.get(card.feature, card).to_json()


def on_its_strongest_example(search: "CauseSearch", graph: "FeatureGraph", evidence: "Evidence") -> dict[str, Any]:
    """The circuit on the first example of its target, for circuit-tracer's and Neuronpedia's viewers."""
    import torch

    from circuits.exports import Prompt, neuronpedia
    from circuits.graph import ErrorTerm, Readout

    model = search.model
    _, examples = evidence.targets(graph.target)
    end = int(examples.end[0])
    tokens = examples.tokens[:1, : end + 1]
    sites = {node.id.site for node in graph.nodes if not isinstance(node.id, Readout)}
    with torch.no_grad():
        recorded = model.record(tokens, sites | {model.sites()[-1]})
        probability = model.unembed(recorded[model.sites()[-1]][0, -1]).softmax(-1)
    shown, outputs = {}, {}
    for node in graph.nodes:
        if isinstance(node.id, Readout):
            target, _ = evidence.targets(node.id)
            token = int(target.plus[0])
            outputs[node.id] = (token, float(probability[token]))
        elif not isinstance(node.id, ErrorTerm):
            f = search.dictionaries[node.id.site].encode(recorded[node.id.site][0])[:, node.id.index]
            shown[node.id] = (f * model.content(tokens)[0].to(f.device)).tolist()
    words = tuple(model.token_text(token) for token in tokens[0].tolist())
    slug = "".join(letter if letter.isalnum() else "-" for letter in str(graph.target)).strip("-")
    return neuronpedia(graph, Prompt(words, shown, outputs), slug=slug, scan=Path(model.name).name)
