"""Requests: what they ask for, and what is resolved from them."""

import pytest
import torch
from handmade import random_topk
from tiny import random_tokens, user_error

from circuits.discovery.edges import EdgeConfig
from circuits.discovery.prompts import PromptSource
from circuits.discovery.request import CauseAblation, CircuitRequest, ResolvedRequest, check_request, resolve
from circuits.discovery.sampling import SpreadExamples
from circuits.discovery.target_causes import DiscoveryConfig
from circuits.effects.ablation_effects import ToMean, ToOthers
from circuits.features.atlas import FeatureAtlas, survey
from circuits.graph import Readout
from sae_core.data.text import Text
from sae_core.sites import FeatureId, Site
from sae_core.storage import DictionarySet


@pytest.fixture(scope="module")
def saes(storybook) -> DictionarySet:
    dictionaries = {site: random_topk(128, 48, 6, seed=site.layer) for site in storybook.sites()[3:5]}
    text = Text("storybook", n_ctx=12, prepend_bos=True)
    return DictionarySet("storybook", storybook.fingerprint(), text, dictionaries)


@pytest.fixture(scope="module")
def atlas(storybook, saes) -> FeatureAtlas:
    contexts = random_tokens(storybook.n_vocab, 24, 12)
    contexts[:, 0] = storybook.bos_id
    return survey(storybook, saes.dictionaries, contexts)


def resolved(storybook, saes, atlas, **request) -> ResolvedRequest:
    config = DiscoveryConfig(EdgeConfig(n_null=0), n_examples=16)
    return resolve(storybook, saes, atlas, CircuitRequest(**request), config)


def test_a_feature_has_the_examples_of_the_text(storybook, saes, atlas):
    result = resolved(storybook, saes, atlas, target="4_7")
    assert result.target.node == FeatureId(Site(4), 7) and result.examples is None
    assert result.search.source is atlas and not result.search.ablations
    spread = resolved(storybook, saes, atlas, target="4_7", spread=True)
    assert isinstance(spread.search.source, SpreadExamples)
    assert resolved(storybook, saes, atlas).target.site == Site(4)  # the default, at the last site


def test_a_logit_is_read_on_its_prompts_and_every_feature_on_the_same(storybook, saes, atlas):
    lines = ("Mary said that", "John went to the store and")
    result = resolved(storybook, saes, atlas, target="logit: she - he", prompts=lines)
    assert result.target.node == Readout("she - he") and len(result.prompts().examples) == 2
    assert isinstance(result.search.source, PromptSource) and result.search.config.min_examples == 1
    task = resolved(storybook, saes, atlas, target="task: ioi")
    assert task.corrupted is not None and task.corrupted.shape == task.examples.tokens.shape
    places = resolved(storybook, saes, atlas, target="logit: she - he")
    assert len(places.examples) == 16 and places.corrupted is None


def test_causes_are_set_to_zero_to_means_or_to_values_elsewhere(storybook, saes, atlas):
    for ablation, kind in ((CauseAblation.MEAN, ToMean), (CauseAblation.RESAMPLE, ToOthers)):
        ablations = resolved(storybook, saes, atlas, target="4_7", ablation=ablation).search.ablations
        assert ablations.keys() == {Site(3), Site(4)} and all(isinstance(a, kind) for a in ablations.values())


def test_what_cannot_be_explained(storybook, saes, atlas):
    for target in ("4_7", "task: ioi", None):
        with user_error("prompts", "logit: she - he"):
            CircuitRequest(target, prompts=("a",))
    for target in ("logit: she - he", "task: ioi"):
        with user_error(target, "spread"):  # it used to be ignored
            CircuitRequest(target, spread=True)
    with user_error("4_99", "48 latents"):
        resolved(storybook, saes, atlas, target="4_99")
    with torch.no_grad():
        saes.dictionaries[Site(4)].b_enc[5] = -1e6
    silent = survey(storybook, saes.dictionaries, atlas.contexts)
    with user_error("4_5", "never active"):
        resolved(storybook, saes, silent, target="4_5").prompts()


@pytest.mark.parametrize(
    ("target", "beginning"),
    [
        ("next: )", ")"),
        (")", ")"),
        ('next: "', '"'),
        ("next: he", "he"),
        ("5_2079", None),
        ("logit: she", None),
        (None, None),
    ],
)
def test_a_target_may_be_the_token_that_it_predicts(target, beginning):
    request = CircuitRequest(target)
    assert request.next_token == beginning and request.is_logit is (target == "logit: she")


def test_the_feature_of_a_token_is_of_the_last_residual_and_an_unknown_token_is_refused(storybook, saes, atlas):
    words = map(storybook.token_text, atlas.contexts[:, 1:].unique().tolist())
    word = next(word for word in words if word.isalpha())
    feature = resolved(storybook, saes, atlas, target=f"next: {word}").target.node
    assert feature.site == Site(4) and not atlas.sites[Site(4)].sinks[feature.index]
    with user_error("'xylophones'", "one token"):
        check_request(storybook, saes, CircuitRequest("next: xylophones"))
