"""Predicates say what a reader of the characters would say."""

import pytest
from characters import BOS, Characters

from circuits.features.predicates import next_token_ids, open_marks, predicates


@pytest.mark.parametrize(
    ("pieces", "mark", "expected"),
    [
        (["f(", "x", ")", " y"], "(", "1100"),
        (["f((", "x", ")", " y", ")."], "(", "11110"),
        (["1", ")", " (", "x"], "(", "0011"),  # a list's bracket closes nothing
        (["[", "(", "]", ")"], "(", "0100"),  # what was left open inside is closed, too
        (["(", "a", None, "b"], "(", "1100"),  # a new document begins with nothing open
        ([' "', "a", '"', "b"], '"', "1100"),
        (['"', "a\\", '"', "b", '"'], '"', "11110"),
        (["``", "a", "``", " b"], "`", "1100"),
        (['"', "a", "\n", "\n", "b"], '"', "11100"),
        (["(", "a", "\n\n", "b"], "(", "1111"),
    ],
)
def test_what_is_open(pieces, mark, expected):
    assert "".join(str(int(mark in marks)) for marks in open_marks(pieces)) == expected


def test_predicates_of_a_text():
    model = Characters(["print", "(", " x", ").", "A", " y", ")"])
    contexts = model.contexts([BOS, "print", "(", " x", ").", " y"], [BOS, "A", "(", "A", ")", BOS])
    truths = predicates(model, contexts, ["x"])
    expected = {
        "inside (": ["001100", "001100"],
        "next: )": ["000100", "000100"],  # the first closes with ").", the second with ")"
        "next: x": ["001000", "000000"],  # whatever spaces stand before
        "begins a word": ["000101", "000000"],
        "has )": ["000010", "000010"],
        "a word with a capital": ["000000", "000000"],
        "has (": ["001000", "001000"],
    }
    for name, rows in expected.items():
        assert ["".join(map(str, row)) for row in truths[name].int().tolist()] == rows, name
    assert not any(truth[:, 0].any() for truth in truths.values())  # special tokens are nothing


def test_a_mark_is_whatever_token_begins_with_it_and_a_word_only_itself():
    model = Characters([")", " ).", "he", " he", " hello", "x)"])
    assert next_token_ids(model, ")") == [1, 2]
    assert next_token_ids(model, "he") == [3, 4]
    assert next_token_ids(model, "}") == []
