"""The folder to explore a circuit in, and the files for other people's viewers."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.discovery.edge_examples import EdgeExampleFinder
from circuits.discovery.request import ResolvedRequest
from circuits.exports import neuronpedia, node_link
from circuits.features.card import Card
from circuits.features.catalogue import Catalogue, read_catalogue
from circuits.graph import FeatureGraph
from circuits.influence import by_influence
from circuits.shown_prompt import Prompt
from sae_core.codec import to_plain
from sae_core.data.text import Contexts
from sae_core.errors import UserError
from sae_core.files import write_json
from sae_core.progress import OnProgress
from sae_core.sites import FeatureId
from subrank.pages.explorer import Captions, explore

log = logging.getLogger(__name__)
MEMBERS, EDGES = 20, 60
"""Nodes with full cards, and edges with examples, of a circuit of what blocks write, which has hundreds."""


@dataclass(frozen=True, eq=False)
class Explored:
    """Cards of all features, and the examples behind every edge of a circuit."""

    catalogue: Catalogue
    full: Mapping[FeatureId, Card]
    """The full cards: those of the circuit's features, of many the most influential."""
    evidence: EdgeExampleFinder
    captions: Captions
    n_edges: int | None = None
    """Edges with examples, the strongest; None for all."""

    @classmethod
    def of(
        cls,
        resolved: ResolvedRequest,
        graph: FeatureGraph,
        read: Contexts,
        n_contexts: int,
        captions: Captions,
        on_progress: OnProgress,
    ) -> "Explored":
        """Cards are made from `n_contexts` contexts, at most four fifths, and scored on a quarter as many others."""
        search = resolved.search
        n = min(n_contexts, max(1, 4 * len(read.all) // 5))
        training, held = read.apart(n, max(2, n // 4))
        seed = search.config.edges.seed
        catalogue = read_catalogue(resolved.atlas.survey, training, held, seed=seed, on_progress=on_progress)
        most = MEMBERS if resolved.on_prompts else None
        alive = [f for f in by_influence(graph)[:most] if catalogue.tally.sites[f.site].active[f.index]]
        labels = {node.id: node.label for node in graph.nodes if isinstance(node.id, FeatureId) and node.label}
        full = {card.feature: card for card in catalogue.full(sorted(alive), on_progress, labels)} if alive else {}
        evidence = EdgeExampleFinder(search.model, search.dictionaries, resolved.examples_of, search.ablations)
        return cls(catalogue, full, evidence, captions, EDGES if resolved.on_prompts else None)

    def cards(self) -> Iterator[dict[str, Any]]:
        """Every feature's card, the full one where there is one."""
        for site in sorted(self.catalogue.dictionaries):
            for card in self.catalogue.light(site):
                yield self.full.get(card.feature, card).to_json()


def write_explorer(folder: Path, graph: FeatureGraph, explored: Explored) -> None:
    """Write `explore/`."""
    evidence = explored.evidence
    strongest = set(sorted(graph.edges, key=lambda edge: -abs(edge.effect))[: explored.n_edges])
    behind = {(e.cause, e.target): to_plain(evidence.of(e)) if e in strongest else [] for e in graph.edges}
    explore(folder / "explore", graph, explored.cards(), edge_examples=behind, captions=explored.captions)


def write_exports(folder: Path, graph: FeatureGraph, prompt: Prompt, model: str) -> None:
    """Write `node_link.json`, and `neuronpedia/graph.json` on a prompt where its viewers can show it."""
    write_json(folder / "node_link.json", node_link(graph))
    slug = "".join(letter if letter.isalnum() else "-" for letter in str(graph.target)).strip("-")
    try:
        write_json(folder / "neuronpedia" / "graph.json", neuronpedia(graph, prompt, slug=slug, scan=Path(model).name))
    except UserError as error:
        log.warning(f"neuronpedia/graph.json is not written: {error}")
