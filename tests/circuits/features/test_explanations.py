"""Labels: planted rules are found and score 1, sums score as a plain pass does, others' rules score nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from handmade import HandModel, normal, random_topk
from tiny import random_tokens
from torch import Tensor

from circuits.features.card import spots
from circuits.features.catalogue import Catalogue, read_catalogue
from circuits.features.explanations import (
    Kind,
    Score,
    TokenTable,
    mean_score,
    score,
    spelled,
    table_scores,
    token_tables,
)
from circuits.features.patterns import Pattern, Patterns, Probe, _chosen, _merged, find_patterns
from circuits.features.statistics import activations, tally
from sae_core.sites import FeatureId, Site

A, B, C, D, E = 3, 4, 5, 6, 7
SITE = Site(1)


@dataclass(frozen=True, eq=False)
class Planted:
    """f_j = relu(h . reads_j - threshold_j), along directions of its own."""

    reads: Tensor
    threshold: Tensor

    @property
    def directions(self) -> Tensor:
        return torch.nn.functional.normalize(self.reads, dim=-1)

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.reads.T - self.threshold).relu()

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.directions


B_AFTER_A, ON_C, AFTER_D, A_GAP_B, SILENT, ON_E = range(6)


def planted() -> tuple[HandModel, dict[Site, Planted]]:
    """Token t writes axis t; axes 10 and 11 say that A or D came just before, axis 12 that A came two before."""
    embedding = torch.eye(9, 14)
    embedding[0] = 0  # BOS
    before, twice = torch.zeros(2, 14, 14)
    before[10, A] = before[11, D] = 1
    twice[12, 10] = 1
    nothing = torch.zeros(14, 14)
    model = HandModel(embedding, [(nothing, before), (nothing, twice)])
    reads, threshold = torch.zeros(6, 14), torch.zeros(6)
    reads[B_AFTER_A, [B, 10]], threshold[B_AFTER_A] = torch.tensor([2.0, 2.0]), 2.5
    reads[ON_C, C] = 3
    reads[AFTER_D, 11] = 1
    reads[A_GAP_B, [B, 12]], threshold[A_GAP_B] = 1.0, 1.5
    threshold[SILENT] = 1
    reads[ON_E, E] = 1
    return model, {SITE: Planted(reads, threshold)}


def texts(n: int, seed: int, length: int = 24) -> Tensor:
    tokens = torch.randint(1, 9, (n, length), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = 0
    return tokens


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return read_catalogue(*planted(), texts(80, 1), texts(40, 2))


def one(token: int) -> frozenset[int]:
    return frozenset({token})


def patterns_of(catalogue: Catalogue, latent: int) -> Patterns | None:
    feature = FeatureId(SITE, latent)
    generator = torch.Generator().manual_seed(0)
    activation = activations(catalogue.model, catalogue.dictionaries, [feature], catalogue.training)[feature]
    places = spots(activation, catalogue.training, top=8, per_quarter=4, generator=generator)
    probe = Probe(catalogue.model, catalogue.dictionaries[SITE], feature)
    examples = [(spot.context, spot.position) for spot in places]
    return find_patterns(probe, catalogue.training, activation, examples, generator=generator)


# ---- planted rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latent", "places", "value"),
    [
        (B_AFTER_A, (one(A), one(B)), 1.5),
        (ON_C, (one(C),), 3.0),
        (AFTER_D, (one(D), None), 1.0),
        (A_GAP_B, (one(A), None, one(B)), 0.5),
    ],
)
def test_the_planted_pattern_is_found(catalogue, latent, places, value):
    found = patterns_of(catalogue, latent)
    assert found.patterns == (Pattern(places),)
    assert found.values == pytest.approx((value,))


@pytest.mark.parametrize("latent", [B_AFTER_A, ON_C, AFTER_D, A_GAP_B, ON_E])
def test_a_label_predicts_its_planted_feature_and_others_labels_do_not(catalogue, latent):
    """Of the two kinds the token table is as good for a feature of one token; nothing else has such a table."""
    latents = [B_AFTER_A, ON_C, AFTER_D, A_GAP_B, ON_E]
    cards = {card.feature.index: card for card in catalogue.full([FeatureId(SITE, i) for i in latents])}
    label, density = cards[latent].label, cards[latent].density
    assert perfect(label.score)
    assert label.control.precision < density + 0.06 and abs(label.control.correlation) < 0.1
    assert label.control.recall < 0.2
    if latent not in (ON_C, ON_E):
        assert label.kind is Kind.PATTERN


def test_labels_read_as_words(catalogue):
    cards = catalogue.full([FeatureId(SITE, i) for i in (B_AFTER_A, AFTER_D, ON_C)])
    assert [card.label.text for card in cards] == ["t3 t4", "t6 *", "t5"]


def test_a_token_table_cannot_say_what_a_pattern_says(catalogue):
    """Its precision on "B after A" is that of B alone; its score on the card of a token feature is perfect."""
    table = catalogue.scores[SITE]
    assert perfect(table.of(ON_C))
    assert table.of(B_AFTER_A).precision < 0.25 and table.of(B_AFTER_A).correlation < 0.5
    assert catalogue.tables[SITE].of(SILENT).tokens == ()
    assert table.of(SILENT) == NOTHING == catalogue.controls[SITE].of(SILENT)


def test_a_feature_alone_is_compared_with_token_tables_of_its_site(catalogue):
    (card,) = catalogue.full([FeatureId(SITE, B_AFTER_A)])
    assert card.label.score.precision == 1 and card.label.control.correlation < 0.2


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
    found = find_patterns(spy, contexts, activation, [(0, 7)], generator=torch.Generator().manual_seed(0))
    assert spy.asked[:4] == [(0, B), (0, A, B), (0, B, A, B), (0, 2, B, A, B)]
    assert {len(text) for text in spy.asked[4:]} == {3}  # the shortest that is active, with tokens exchanged
    assert found.patterns == (Pattern((one(A), one(B))),)


# ---- parts -----------------------------------------------------------------------------------------


def test_matches_are_those_of_a_plain_search():
    tokens = random_tokens(8, 30, 12)
    tokens[::3, 4] = 0
    content = tokens != 0
    pattern = Pattern((frozenset({2, 3}), None, one(5)))
    found = pattern.matches(tokens, content)
    for row in range(30):
        for end in range(12):
            expected = end >= 2 and all(content[row, end - 2 : end + 1]) and int(tokens[row, end]) == 5
            expected = expected and int(tokens[row, end - 2]) in (2, 3)
            assert bool(found[row, end]) == expected
    assert found.any()


def test_the_more_specific_pattern_predicts():
    tokens = torch.tensor([[3, 4, 5, 4]])
    rule = Patterns((Pattern((one(3), one(4))), Pattern((one(4),))), (2.0, 1.0), (1, 1))
    assert rule.predict(tokens, tokens > 0).tolist() == [[0, 2, 0, 1]]


def test_patterns_unite_only_where_nothing_is_added():
    a, b, c = Pattern((one(1), None, one(2))), Pattern((one(3), None, one(2))), Pattern((one(3), None, one(4)))
    (united, rest) = _merged([a, b, c])
    assert united == Pattern((frozenset({1, 3}), None, one(2))) and rest == c
    tokens = random_tokens(6, 40, 9)
    content = torch.ones_like(tokens, dtype=torch.bool)
    both = a.matches(tokens, content) | b.matches(tokens, content)
    assert torch.equal(united.matches(tokens, content), both)


def test_patterns_that_do_not_help_are_left_out():
    """One that is always right, one that is always wrong, one that says what the first says."""
    tokens = random_tokens(8, 40, 9)
    content = torch.ones_like(tokens, dtype=torch.bool)
    right, same, wrong = Pattern((one(3),)), Pattern((one(2), one(3))), Pattern((one(4),))
    activation = (tokens == 3).float()
    assert _chosen([wrong, same, right], tokens, content, activation) == [right]


NOTHING = Score(0.0, 0.0, 0.0)


def perfect(found: Score) -> bool:
    return (found.precision, found.recall) == (1, 1) and found.correlation == pytest.approx(1)


def test_score_has_a_value_where_nothing_is_predicted_or_active():
    zero, some = torch.zeros(6), torch.tensor([0.0, 1, 0, 2, 0, 0])
    assert score(zero, some) == NOTHING == score(some, zero)
    assert perfect(score(some, some)) and not perfect(score(2 - some, some))
    assert score(2 - some, some).correlation == pytest.approx(-1)
    assert mean_score([Score(1.0, 0.0, 0.5), Score(0.0, 0.0, -0.5)]) == Score(0.5, 0.0, 0.0)
    assert mean_score([]) == NOTHING


def test_words_are_joined_as_their_tokens_want():
    assert spelled(["gave", "*", "to"]) == "gave * to"
    assert spelled([" walk", "ing", " (a|b)"]) == "walking (a|b)"
    assert spelled(["\n"]) == "↵" and spelled([" "]) == "' '"


# ---- token tables ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted(tiny_models):
    model = tiny_models["gpt2"]
    dictionaries = {Site(1): random_topk(32, 40, 5)}
    both = []
    for seed in (1, 2):
        contexts = random_tokens(25, 24, 16, seed=seed)
        contexts[:, 0] = 0
        both.append((contexts, tally(model, dictionaries, contexts)))
    return model, dictionaries, both


def dense(model, dictionaries, contexts) -> Tensor:
    """Codes of all content tokens, `[tokens, n_latents]`."""
    f = dictionaries[Site(1)].encode(model.record(contexts, [Site(1)])[Site(1)])
    return f[model.content(contexts)]


def test_scores_from_sums_are_those_of_predictions(counted):
    model, dictionaries, ((_, own), (contexts, other)) = counted
    tables = token_tables(own.sites[Site(1)], own.token_counts)
    partner = torch.arange(40).roll(7)
    found = table_scores(tables, other.sites[Site(1)], other.token_counts)
    control = table_scores(tables, other.sites[Site(1)], other.token_counts, partner)
    content, true = model.content(contexts), dense(model, dictionaries, contexts)
    for j in range(40):
        table = tables.of(j)
        predicted = table.predict(contexts, content)[content] if table.tokens else torch.zeros(len(true))
        for scores, latent in ((found, j), (control, int(partner[j]))):
            expected = score(predicted, true[:, latent])
            assert scores.of(latent).precision == pytest.approx(expected.precision, abs=1e-6)
            assert scores.of(latent).recall == pytest.approx(expected.recall, abs=1e-6)
            assert scores.of(latent).correlation == pytest.approx(expected.correlation, abs=1e-5)
    assert found.correlation.mean() > 0.05 > control.correlation.mean().abs()


def test_a_table_is_the_best_prefix_of_the_tokens_by_their_rates(counted):
    model, dictionaries, ((contexts, own), _) = counted
    tables = token_tables(own.sites[Site(1)], own.token_counts)
    tokens, codes = contexts[model.content(contexts)], dense(model, dictionaries, contexts)
    for j in range(40):
        active = codes[:, j] != 0
        rates = {t: active[tokens == t].double().mean().item() for t in tokens.unique().tolist()}
        ranked = sorted((t for t in rates if rates[t]), key=lambda t: -rates[t])
        best = 0.0
        for n in range(1, len(ranked) + 1):
            on = torch.isin(tokens, torch.tensor(ranked[:n]))
            best = max(best, 2 * int((on & active).sum()) / int(on.sum() + active.sum()))
        table = tables.of(j)
        if not active.any():
            assert table.tokens == ()
            continue
        on = torch.isin(tokens, torch.tensor(table.tokens))
        assert 2 * int((on & active).sum()) / int(on.sum() + active.sum()) == pytest.approx(best)
        assert min(rates[t] for t in table.tokens) >= max((rates[t] for t in rates if t not in table.tokens), default=0)
        for token, value in zip(table.tokens, table.values, strict=True):
            assert value == pytest.approx(codes[tokens == token, j].mean().item(), rel=1e-5)


def test_a_random_predictor_scores_nothing():
    """Control for the scores above: a table of noise on noise."""
    true = normal(5000, seed=3).relu()
    assert abs(score(normal(5000, seed=4).relu(), true).correlation) < 0.05
    assert TokenTable((2,), (1.0,)).predict(torch.tensor([[2, 9]]), torch.tensor([[True, True]])).tolist() == [[1, 0]]
