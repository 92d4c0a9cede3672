"""Predicates that are made for a feature: true where they say, and the best of their kind among all there are."""

from itertools import combinations

import torch
from characters import BOS, Characters

from circuits.features.label_predicates import NEAR, LabelText, ShortlyAfter, Together, TokensAt, Usual, _best_set

MODEL = Characters(["(", " x", ")", " y", " z"])
OPENS, X, CLOSES, Y, Z = range(1, 6)
ROWS = ([BOS, "(", " x", ")", *[" z"] * NEAR, " y"], [BOS, " x", *[" z"] * 5, "(", " x", " x", ")", " y", BOS])
TEXT = LabelText(MODEL, MODEL.contexts(*ROWS))
EVERYWHERE = torch.arange(TEXT.contexts.numel())


def shown(predicate) -> list[str]:
    truth = predicate.at(TEXT, EVERYWHERE)
    assert int(truth.sum()) == predicate.n_true(TEXT)
    assert torch.equal(predicate.at(TEXT, EVERYWHERE[5:9]), truth[5:9]), "whatever places are asked for"
    return ["".join(map(str, row)) for row in truth.view_as(TEXT.contexts).int().tolist()]


def test_shortly_after_is_within_a_few_tokens_of_the_same_document():
    """Neither on the token itself, nor more than `NEAR` behind it, nor on a special token, nor in the next context."""
    assert shown(ShortlyAfter(OPENS)) == ["00" + "1" * NEAR + "000", "0000000011110"]
    assert ShortlyAfter(OPENS).text(MODEL) == '"(" … _'
    assert not any("1" in row for row in shown(ShortlyAfter(0))), "a special token is before nothing"


def test_together_is_where_both_hold():
    on_x, inside = TokensAt(0, (X,)), Usual("inside (")
    both = Together(on_x, inside)
    assert shown(on_x) == ["0010000000000", "0100000011000"]
    assert shown(both) == ["0010000000000", "0000000011000"]
    assert both.text(MODEL) == 'on " x", inside ( …'


def f1(tokens, places) -> float:
    predicate = TokensAt(0, tuple(tokens))
    return 2 * int(predicate.at(TEXT, places).sum()) / (predicate.n_true(TEXT) + len(places))


def test_no_other_set_of_tokens_agrees_better():
    for seed in range(20):
        content = (TEXT.contexts > 0).flatten().nonzero()[:, 0]
        order = torch.randperm(len(content), generator=torch.Generator().manual_seed(seed))
        places = content[order[: 3 + seed % 6]].sort().values
        best = _best_set(TEXT, places)
        others = [each for n in range(1, 6) for each in combinations(range(1, 6), n)]
        assert f1(best, places) == max(f1(each, places) for each in others)
        hits = [int((TEXT.contexts.flatten()[places] == token).sum()) for token in best]
        assert hits == sorted(hits, reverse=True) and min(hits) > 0, "the most frequent first"
    alone = ((TEXT.contexts == Y) | (TEXT.contexts == CLOSES)).flatten().nonzero()[:, 0]
    assert set(_best_set(TEXT, alone)) == {Y, CLOSES}
