"""Patterns: planted ones are found, and each part does what it says."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from handmade import random_topk
from planted_rules import A_GAP_B, AFTER_D, B_AFTER_A, ON_C, SITE, A, B, C, D, planted, texts
from tiny import random_tokens
from torch import Tensor

from circuits.features.card import spots
from circuits.features.catalogue import Catalogue, read_catalogue
from circuits.features.patterns import (
    KEPT,
    Pattern,
    Patterns,
    Probe,
    _chosen,
    _merged,
    _options,
    _suffixes,
    find_patterns,
)
from circuits.features.survey import Survey
from sae_core.sites import FeatureId


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return read_catalogue(Survey(*planted()), texts(80, 1), texts(40, 2))


def only(token: int) -> frozenset[int]:
    return frozenset({token})


def patterns_of(catalogue: Catalogue, latent: int) -> Patterns | None:
    feature = FeatureId(SITE, latent)
    generator = torch.Generator().manual_seed(0)
    activation = catalogue.survey.activations([feature], catalogue.training)[feature]
    places = spots(activation, catalogue.training, top=8, per_quarter=4, generator=generator)
    probe = Probe(catalogue.model, catalogue.dictionaries[SITE], feature)
    examples = [(spot.context, spot.position) for spot in places]
    return find_patterns(probe, catalogue.training, activation, examples, generator=generator)


@pytest.mark.parametrize(
    ("latent", "places", "value"),
    [
        (B_AFTER_A, (only(A), only(B)), 1.5),
        (ON_C, (only(C),), 3.0),
        (AFTER_D, (only(D), None), 1.0),
        (A_GAP_B, (only(A), None, only(B)), 0.5),
    ],
)
def test_the_planted_pattern_is_found(catalogue, latent, places, value):
    learnt = patterns_of(catalogue, latent)
    assert learnt.patterns == (Pattern(places),)
    assert learnt.values == pytest.approx((value,))


def test_no_pattern_where_no_suffix_keeps_the_activation():
    """Nothing keeps half of an activation larger than any that the model gives."""
    model, dictionaries = planted()
    contexts = texts(8, 3)
    feature = FeatureId(SITE, B_AFTER_A)
    assert (
        find_patterns(
            Probe(model, dictionaries[SITE], feature),
            contexts,
            torch.full(contexts.shape, 100.0),
            [(0, 5), (1, 7)],
            generator=torch.Generator().manual_seed(0),
        )
        is None
    )


@dataclass(frozen=True, eq=False)
class Spy(Probe):
    """A probe that notes what it is asked."""

    asked: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, texts: Sequence[Sequence[int]]) -> Tensor:
        self.asked.extend(map(tuple, texts))
        return super().__call__(texts)


def test_suffixes_stop_at_special_tokens():
    """Each begins with BOS, grows to the left one token at a time, and never reaches across a BOS."""
    model, dictionaries = planted()
    contexts = torch.tensor([[0, 1, A, 0, 2, B, A, B]])
    spy = Spy(model, dictionaries[SITE], FeatureId(SITE, B_AFTER_A))
    activation = torch.zeros(contexts.shape)
    activation[0, 7] = 1.5
    learnt = find_patterns(spy, contexts, activation, [(0, 7)], generator=torch.Generator().manual_seed(0))
    assert spy.asked[:4] == [(0, B), (0, A, B), (0, B, A, B), (0, 2, B, A, B)]
    assert {len(text) for text in spy.asked[4:]} == {3}  # the shortest that is active, with tokens exchanged
    assert learnt.patterns == (Pattern((only(A), only(B))),)


@pytest.mark.parametrize("latent", range(6))
def test_the_shortest_suffix_is_that_of_trying_all(tiny_models, latent):
    """Of a random dictionary of a random model, also where only a long suffix keeps the activation, or none does."""
    model, sae = tiny_models["gpt2"], random_topk(32, 24, 5)
    contexts = random_tokens(model.n_vocab, 12, 24, seed=latent)
    feature = FeatureId(SITE, latent)
    f = Survey(model, {SITE: sae}).activations([feature], contexts)[feature]
    examples = [(row, int(f[row].argmax())) for row in range(12) if f[row].max() > 0]
    plain, spy = Probe(model, sae, feature), Spy(model, sae, feature)
    content = model.content(contexts)
    expected = []
    for row, end in examples:
        texts = [before + tokens for before, tokens in _options(contexts[row], content[row], end)]
        kept = plain(texts) >= KEPT * f[row, end]
        expected += [texts[int(kept.int().argmax())]] if kept.any() else []
    suffixes = _suffixes(spy, contexts, content, f, examples)
    assert [suffix.before + suffix.tokens for suffix in suffixes] == expected
    n_options = sum(len(_options(contexts[row], content[row], end)) for row, end in examples)
    assert len(spy.asked) <= n_options


def test_matches_are_those_of_a_plain_search():
    tokens = random_tokens(8, 30, 12)
    tokens[::3, 4] = 0
    content = tokens != 0
    pattern = Pattern((frozenset({2, 3}), None, only(5)))
    matches = pattern.matches(tokens, content)
    for row in range(30):
        for end in range(12):
            expected = end >= 2 and all(content[row, end - 2 : end + 1]) and int(tokens[row, end]) == 5
            expected = expected and int(tokens[row, end - 2]) in (2, 3)
            assert bool(matches[row, end]) == expected
    assert matches.any()


def test_the_more_specific_pattern_predicts():
    tokens = torch.tensor([[3, 4, 5, 4]])
    rule = Patterns((Pattern((only(3), only(4))), Pattern((only(4),))), (2.0, 1.0), (1, 1))
    assert rule.predict(tokens, tokens > 0).tolist() == [[0, 2, 0, 1]]


def test_patterns_unite_only_where_nothing_is_added():
    a, b, c = Pattern((only(1), None, only(2))), Pattern((only(3), None, only(2))), Pattern((only(3), None, only(4)))
    (united, rest) = _merged([a, b, c])
    assert united == Pattern((frozenset({1, 3}), None, only(2))) and rest == c
    tokens = random_tokens(6, 40, 9)
    content = torch.ones_like(tokens, dtype=torch.bool)
    both = a.matches(tokens, content) | b.matches(tokens, content)
    assert torch.equal(united.matches(tokens, content), both)


def test_patterns_that_do_not_help_are_left_out():
    """One that is always right, one that is always wrong, one that says what the first says."""
    tokens = random_tokens(8, 40, 9)
    content = torch.ones_like(tokens, dtype=torch.bool)
    right, same, wrong = Pattern((only(3),)), Pattern((only(2), only(3))), Pattern((only(4),))
    activation = (tokens == 3).float()
    assert _chosen([wrong, same, right], tokens, content, activation) == [right]
