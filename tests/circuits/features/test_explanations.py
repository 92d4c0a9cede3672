"""Labels: planted rules are found and score 1, sums score as a plain pass does, others' rules score nothing."""

import pytest
import torch
from handmade import normal, random_topk
from planted_rules import A_GAP_B, AFTER_D, B_AFTER_A, ON_C, ON_E, SILENT, SITE, planted, texts
from tiny import random_tokens
from torch import Tensor

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
from circuits.features.statistics import tally
from circuits.features.survey import Survey
from sae_core.sites import FeatureId, Site


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return read_catalogue(Survey(*planted()), texts(80, 1), texts(40, 2))


# ---- planted rules ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("latent", [B_AFTER_A, ON_C, AFTER_D, A_GAP_B, ON_E])
def test_a_label_predicts_its_planted_feature_and_others_labels_do_not(catalogue, latent):
    """Of the two kinds the token table is as good for a feature of one token; nothing else has such a table."""
    latents = [B_AFTER_A, ON_C, AFTER_D, A_GAP_B, ON_E]
    cards = {card.feature.index: card for card in catalogue.full([FeatureId(SITE, i) for i in latents])}
    rule, density = cards[latent].rule, cards[latent].density
    assert perfect(rule.score)
    assert rule.control.precision < density + 0.06 and abs(rule.control.correlation) < 0.1
    assert rule.control.recall < 0.2
    if latent not in (ON_C, ON_E):
        assert rule.kind is Kind.PATTERN


def test_labels_read_as_words(catalogue):
    cards = catalogue.full([FeatureId(SITE, i) for i in (B_AFTER_A, AFTER_D, ON_C)])
    assert [card.rule.text for card in cards] == ["t3 t4", "t6 *", "t5"]


def test_a_token_table_cannot_say_what_a_pattern_says(catalogue):
    """Its precision on "B after A" is that of B alone; its score on the card of a token feature is perfect."""
    table = catalogue.scores[SITE]
    assert perfect(table.of(ON_C))
    assert table.of(B_AFTER_A).precision < 0.25 and table.of(B_AFTER_A).correlation < 0.5
    assert catalogue.tables[SITE].of(SILENT).tokens == ()
    assert table.of(SILENT) == NOTHING == catalogue.controls[SITE].of(SILENT)


def test_a_feature_alone_is_compared_with_token_tables_of_its_site(catalogue):
    (card,) = catalogue.full([FeatureId(SITE, B_AFTER_A)])
    assert card.rule.score.precision == 1 and card.rule.control.correlation < 0.2


# ---- parts -----------------------------------------------------------------------------------------


NOTHING = Score(0.0, 0.0, 0.0)


def perfect(result: Score) -> bool:
    return (result.precision, result.recall) == (1, 1) and result.correlation == pytest.approx(1)


def test_score_has_a_value_where_nothing_is_predicted_or_active():
    zero, active = torch.zeros(6), torch.tensor([0.0, 1, 0, 2, 0, 0])
    assert score(zero, active) == NOTHING == score(active, zero)
    assert perfect(score(active, active)) and not perfect(score(2 - active, active))
    assert score(2 - active, active).correlation == pytest.approx(-1)
    assert mean_score([Score(1.0, 0.0, 0.5), Score(0.0, 0.0, -0.5)]) == Score(0.5, 0.0, 0.0)
    assert mean_score([]) == NOTHING


def test_words_are_joined_as_their_tokens_want():
    assert spelled(["gave", "*", "to"], joined=False) == "gave * to"
    assert spelled([" walk", "ing", " (a|b)"], joined=True) == "walking (a|b)"
    assert spelled(["_", "NUM", "ERIC", "_"], joined=True) == "_NUMERIC_"  # no space where the text has none
    assert spelled(["\n"], joined=True) == "↵" and spelled([" "], joined=True) == "' '"


# ---- token tables ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted(tiny_models):
    model = tiny_models["gpt2"]
    dictionaries = {Site(1): random_topk(32, 40, 5)}
    both = []
    for seed in (1, 2):
        contexts = random_tokens(25, 24, 16, seed=seed)
        contexts[:, 0] = 0
        both.append((contexts, tally(Survey(model, dictionaries), contexts)))
    return model, dictionaries, both


def dense(model, dictionaries, contexts) -> Tensor:
    """Codes of all content tokens, `[tokens, n_latents]`."""
    f = dictionaries[Site(1)].encode(model.record(contexts, [Site(1)])[Site(1)])
    return f[model.content(contexts)]


def test_scores_from_sums_are_those_of_predictions(counted):
    model, dictionaries, ((_, atlas), (contexts, other)) = counted
    tables = token_tables(atlas.sites[Site(1)], atlas.token_counts)
    partner = torch.arange(40).roll(7)
    from_sums = table_scores(tables, other.sites[Site(1)], other.token_counts)
    control = table_scores(tables, other.sites[Site(1)], other.token_counts, partner)
    content, true = model.content(contexts), dense(model, dictionaries, contexts)
    for j in range(40):
        table = tables.of(j)
        predicted = table.predict(contexts, content)[content] if table.tokens else torch.zeros(len(true))
        for scores, latent in ((from_sums, j), (control, int(partner[j]))):
            expected = score(predicted, true[:, latent])
            assert scores.of(latent).precision == pytest.approx(expected.precision, abs=1e-6)
            assert scores.of(latent).recall == pytest.approx(expected.recall, abs=1e-6)
            assert scores.of(latent).correlation == pytest.approx(expected.correlation, abs=1e-5)
    assert from_sums.correlation.mean() > 0.05 > control.correlation.mean().abs()


def test_a_table_is_the_best_prefix_of_the_tokens_by_their_rates(counted):
    model, dictionaries, ((contexts, atlas), _) = counted
    tables = token_tables(atlas.sites[Site(1)], atlas.token_counts)
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
