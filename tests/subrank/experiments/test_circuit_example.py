"""The example on which a circuit is shown: the model's own activations there, and the text as it is written."""

import pytest
import torch
from handmade import random_topk
from tiny import random_tokens

from circuits.discovery.edges import EdgeConfig
from circuits.discovery.request import CircuitRequest, resolve
from circuits.discovery.target_causes import DiscoveryConfig
from circuits.features.atlas import survey
from circuits.graph import FeatureGraph, Node
from circuits.shown_prompt import Prompt
from sae_core.codec import from_plain, to_plain
from sae_core.data.text import Text
from sae_core.sites import FeatureId
from sae_core.storage import DictionarySet
from subrank.experiments.circuit_example import FOLLOWING, example_of

LINES = ("Mary said that", "John went to the store and gave a book to")


@pytest.fixture(scope="module")
def resolved(storybook):
    dictionaries = {site: random_topk(128, 48, 6, seed=site.layer) for site in storybook.sites()[3:5]}
    saes = DictionarySet("storybook", storybook.fingerprint(), Text("storybook", 12, prepend_bos=True), dictionaries)
    contexts = random_tokens(storybook.n_vocab, 24, 12)
    contexts[:, 0] = storybook.bos_id
    atlas, config = survey(storybook, dictionaries, contexts), DiscoveryConfig(EdgeConfig(n_null=0), n_examples=16)

    def resolved(**request):
        return resolve(storybook, saes, atlas, CircuitRequest(**request), config)

    return resolved


def graph(target, *features: str) -> FeatureGraph:
    nodes = dict.fromkeys((target, *map(FeatureId.parse, features)))
    return FeatureGraph(target, tuple(map(Node, nodes)), ())


def test_activations_are_those_of_the_model_on_the_text(storybook, resolved):
    request = resolved(target="4_7")
    features = tuple(f"{layer}_{index}" for layer in (3, 4) for index in range(12))
    example = example_of(request, graph(request.target.node, *features))
    examples = request.prompts().examples
    rows = [row for row, end in zip(examples.tokens, examples.end, strict=True) if end + 1 == len(example.tokens)]
    texts = [storybook.tokenizer.decode(row) for row in rows]
    (row,) = (row for row, text in zip(rows, texts, strict=True) if text.startswith("".join(example.tokens)))
    recorded = storybook.record(row[None], request.search.dictionaries)
    n_active = 0
    for feature, values in example.activations.items():
        f = request.search.dictionaries[feature.site].encode(recorded[feature.site])[0, :, feature.index]
        f = f * storybook.content(row)
        assert values == pytest.approx(f[: len(values)].tolist(), rel=1e-3, abs=1e-6)
        n_active += any(values)
    assert example.activations[request.target.node][-1] > 0 and len(example.after) <= FOLLOWING
    for row, end in zip(examples.tokens, examples.end, strict=True):  # on no other example are more active
        recorded = storybook.record(row[None, : end + 1], request.search.dictionaries)
        f = {site: request.search.dictionaries[site].encode(x)[0] for site, x in recorded.items()}
        content = storybook.content(row[: end + 1])
        assert sum(bool(f[each.site][content, each.index].any()) for each in example.activations) <= n_active


def test_a_logit_is_shown_with_its_token_and_probability(storybook, resolved):
    request = resolved(target="logit: she - he", prompts=LINES)
    example = example_of(request, graph(request.target.node, "4_0"))
    assert "".join(example.tokens).endswith(LINES) and any(token.startswith(" ") for token in example.tokens)
    token, probability = example.outputs[request.target.node]
    ids = torch.tensor([storybook.with_bos(storybook.to_ids("".join(example.tokens).removeprefix("<|endoftext|>")))])
    expected = storybook.logits(ids)[0, -1].softmax(-1)[token].item()
    assert storybook.token_text(token).strip() == "she" and probability == pytest.approx(expected, rel=1e-3)
    assert from_plain(Prompt, to_plain(example)) == Prompt(
        example.tokens, {k: tuple(v) for k, v in example.activations.items()}, example.outputs, example.after
    )


def test_a_target_without_features_has_an_example_too(resolved):
    request = resolved(target="logit: she - he", prompts=LINES)
    example = example_of(request, graph(request.target.node))
    assert len(example.tokens) > 2 and not example.activations
