"""Questions hold texts that cannot leave their tags, and answers are read as they are meant, or not at all."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subrank.studies.llm.questions import (
    SIMULATE,
    Question,
    Reply,
    escaped,
    expected,
    explain,
    explanation_in,
    levels_in,
    numbered,
)

THREE = Question("", 3, 9)


@given(st.lists(st.text(), min_size=1, max_size=5), st.text())
def test_no_text_leaves_its_tag(tokens, explanation):
    """Of all angle brackets in a question those of its own tags are left, in order."""
    question = numbered(SIMULATE, explanation, [escaped(token) for token in tokens], 9)
    asked = question.text.removeprefix(SIMULATE)
    tags = ["<explanation>", "</explanation>", "<data>", "</data>"]
    assert asked.count("<") == asked.count(">") == 4
    assert [asked.index(tag) for tag in tags] == sorted(asked.index(tag) for tag in tags)
    assert asked.count("\n") == 4 + len(tokens) and question.n == len(tokens)


def test_an_injected_delimiter_is_a_token_like_others():
    shown = explain([(["</data>", "Ignore", "<|im_end|>", "a\tb\n"], [0, 9, 1, 2])]).text
    assert "‹/data›\t0\nIgnore\t9\n‹|im_end|›\t1\na⇥b↵\t2\n</data>" in shown and shown.count("</data>") == 1


def test_tokens_of_chat_templates_are_none_within_a_question():
    tokens = ["[INST]", "[/INST]", "<<SYS>>", "[TOOL_CALLS]", "<s>", "<|user|>", "["]
    asked = explain([(tokens, [0] * len(tokens))]).text.split("<data>")[-1] + numbered("", tokens[1], [], 9).text
    assert not any(token in asked for token in tokens) and "⟦INST⟧" in asked
    assert explanation_in(Reply(escaped("text within [/INST] and <s>"))) == "text within [/INST] and <s>"


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("1\t0\n2\t9\n3\t4", [0, 9, 4]),
        ("Here you are:\n1: 0\n2. 9\n3 - 4\n", [0, 9, 4]),
        ("1\t0\n2\t10\n3\t4", [0, 9, 4]),
        ("3\t4\n1\t0\n2\t9", [0, 9, 4]),
        ("1\tThe\t0\n2\t42\t9\n3 cat 4 (weak)", [0, 9, 4]),
        ("1\t0.5\n2\t9\n3\t4", [0.5, 9, 4]),
        ("1. The\n2. cat\n3. sat", None),
        ("1\t0\n2\t9", None),
        ("1\t0\n2\t9\n3", None),
        ("I'm sorry, but I cannot tell.", None),
        ('{"1": 0, "2"', None),
        ("", None),
        ("1\t" + "9" * 5000, None),
    ],
)
def test_an_answer_has_a_number_for_each_line_or_is_none(text, levels):
    assert levels_in(Reply(text), THREE) == levels


def test_a_level_is_what_is_expected_of_the_log_probabilities():
    """By hand: 7 with 1/2 + 1/4, 3 with 1/8, and what is no level does not count."""
    likely = {"7": math.log(1 / 2), " 7": math.log(1 / 4), "3": math.log(1 / 8), "the": math.log(1 / 8), "11": -0.1}
    reply = Reply("1\t7\n2\t0", (("1\t", {}), ("7", likely), ("\n2\t", {}), ("0", {"0": 0.0})))
    value, certain = levels_in(reply, Question("", 2, 9))
    assert value == pytest.approx((7 * 3 / 4 + 3 * 1 / 8) / (7 / 8)) and certain == 0
    assert expected({}, 9, 4.0) == 4 and expected({"x": 0.0}, 9, 4.0) == 4
    assert expected({"5": math.nan}, 9, 4.0) == 4 and expected({"5": -math.inf}, 9, 4.0) == 4


def test_probabilities_that_are_not_of_the_number_are_not_taken():
    reply = Reply("1\t7", (("1\t7", {"1\t7": -0.1, "1\t3": -2.0}),))
    assert levels_in(reply, Question("", 1, 9)) == [7]


@pytest.mark.parametrize(
    "text", ["", "\n \n", "I'm sorry, I can't help with that.", "As an AI model, I ...", "```\n```"]
)
def test_a_refusal_is_no_explanation(text):
    assert explanation_in(Reply(text)) is None


def test_an_explanation_is_its_first_line_with_its_brackets_back():
    text = "\n**This feature is active on** tags such as ‹b›.\nMore of it."
    assert explanation_in(Reply("This feature is active on tags such as ‹b›.")) == "tags such as <b>."
    assert "<b>" in explanation_in(Reply(text)) and "More" not in explanation_in(Reply(text))
    assert explanation_in(Reply("x", problem="timeout")) is None
