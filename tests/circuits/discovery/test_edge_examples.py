"""What stands behind an arrow, and where other examples come from."""

import pytest
import torch
from handmade import Circuit

from circuits.discovery.edge_examples import AFTER, EdgeExampleFinder
from circuits.discovery.edges import EdgeConfig
from circuits.discovery.recursive import discover
from circuits.discovery.sampling import RedrawnExamples, SpreadExamples
from circuits.discovery.target_causes import CauseSearch, DiscoveryConfig
from circuits.effects.target_prompts import TargetPrompts
from circuits.effects.targets import FeatureTarget
from circuits.features.atlas import survey
from circuits.graph import Edge, ErrorTerm
from sae_core.codec import to_plain
from sae_core.sites import FeatureId, Site

ROOT = FeatureId(Site(3), 0)


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return Circuit()


@pytest.fixture(scope="module")
def searched(circuit):
    """(evidence, edges of the root, its examples)."""
    atlas = survey(circuit.model, circuit.dictionaries, circuit.contexts())
    root, config = (
        FeatureTarget(ROOT, circuit.dictionaries[Site(3)]),
        DiscoveryConfig(EdgeConfig(n_null=0), max_targets=1),
    )
    (step,) = discover(CauseSearch(circuit.model, circuit.dictionaries, atlas, config), root)
    examples = atlas.examples(ROOT, 16)
    return (
        EdgeExampleFinder(circuit.model, circuit.dictionaries, lambda node: TargetPrompts(root, examples), {}),
        step.edges,
        examples,
    )


def test_the_examples_of_an_edge_are_those_on_which_it_shows_most(circuit, searched):
    evidence, edges, examples = searched
    edge = edges[0]
    shown = evidence.of(edge, 4)
    cause = Circuit.FEATURES[edge.cause.site.layer][edge.cause.index]
    by_hand = []
    for row in range(len(examples)):
        alone = circuit.effect(cause, 8, examples.tokens[row, None], examples.end[row, None])
        by_hand.append((abs(alone * float(examples.activation[row])), alone))
    by_hand.sort(reverse=True)
    assert [example.drop for example in shown] == pytest.approx([drop for _, drop in by_hand[:4]], abs=1e-4)
    contexts = [[circuit.model.token_text(token) for token in row] for row in examples.tokens.tolist()]
    for example in shown:
        assert len(example.cause) == len(example.target) == example.end + 1
        text = list(example.tokens)
        assert any(row[: example.end + 1 + AFTER] == text for row in contexts) and len(text) > example.end + 1
        assert all(token.startswith(" t") for token in text) and max(map(abs, example.cause)) > 0
    value = to_plain(shown[0])
    assert set(value) == {"tokens", "cause", "target", "end", "drop"} and isinstance(value["tokens"], list)


def test_an_error_term_has_no_examples_of_its_own(searched):
    evidence, _, _ = searched
    assert evidence.of(Edge(ErrorTerm(Site(2)), ROOT, 0.1, 0.0, 1, 1)) == []


def test_examples_drawn_anew_are_of_twice_as_many(circuit):
    atlas = survey(circuit.model, circuit.dictionaries, circuit.contexts())
    pool = {tuple(row) for row in atlas.examples(ROOT, 32).tokens.tolist()}
    draws = [RedrawnExamples(atlas, seed).examples(ROOT, 16) for seed in (0, 1)]
    texts = [{tuple(row) for row in draw.tokens.tolist()} for draw in draws]
    assert all(len(draw) == 16 and text <= pool for draw, text in zip(draws, texts, strict=True))
    assert texts[0] != texts[1] and texts[0] == {
        tuple(r) for r in RedrawnExamples(atlas, 0).examples(ROOT, 16).tokens.tolist()
    }
    f = circuit.dictionaries[Site(3)].encode(circuit.model.record(draws[0].tokens, [Site(3)])[Site(3)])
    assert torch.allclose(f[torch.arange(16), draws[0].end, 0], draws[0].activation, atol=1e-5)


def test_examples_over_the_range_are_spread(circuit):
    """One to a bin of equal width, read at their peaks, and not only the strongest."""
    source = SpreadExamples(circuit.model, circuit.dictionaries, circuit.contexts(), seed=0)
    spread = source.examples(ROOT, 8)
    strongest = survey(circuit.model, circuit.dictionaries, circuit.contexts()).examples(ROOT, 8)
    highest = float(strongest.activation.max())
    bins = (spread.activation / highest * 8).ceil().long().tolist()
    assert len(set(bins)) == len(bins) >= 3 and bins == sorted(bins, reverse=True)
    assert float(spread.activation.min()) < 0.9 * float(strongest.activation.min())
    f = circuit.dictionaries[Site(3)].encode(circuit.model.record(spread.tokens, [Site(3)])[Site(3)])[..., 0]
    assert torch.allclose(f.max(1).values, spread.activation, atol=1e-5)
