"""Brackets and quotes: one is open in the clean prompt and none in the corrupted, and storybook knows."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from pieces import Pieces
from tiny import user_error

from editing.tasks import brackets
from editing.tasks.brackets import TEMPLATES, WORDS, BracketTask
from editing.tasks.pairs import PromptPairs
from editing.tasks.score import task_score
from sae_core.storybook.page import CLOSING

N = 60
SPLITS = ("selection", "test")


@pytest.fixture(scope="module")
def task(storybook) -> BracketTask:
    return BracketTask.of(storybook)


@pytest.fixture(scope="module", params=SPLITS)
def pairs(request, storybook, task) -> PromptPairs:
    return task.pairs(storybook, request.param, N, seed=0)


def still_open(text: str) -> str:
    """The brackets and quotes that are open at the end of `text`, innermost last."""
    stack = ""
    for c in text:
        if stack and CLOSING[stack[-1]] == c:
            stack = stack[:-1]
        elif c in CLOSING:
            stack += c
    return stack


@pytest.mark.parametrize("template", TEMPLATES, ids=range(len(TEMPLATES)))
def test_one_is_open_in_the_clean_template_and_none_in_the_corrupted(template):
    stack = still_open(template.clean)
    assert len(stack) == 1 and CLOSING[stack] == template.answer
    assert still_open(template.corrupted) == "" and template.foil.strip() not in {*CLOSING.values()}


def test_every_split_has_every_kind(task):
    for split in SPLITS:
        assert {t.answer for t in task.templates[split]} == {*CLOSING.values()}


def test_in_tokens_too_one_is_open_and_then_none(storybook, pairs):
    unknown = storybook.tokenizer.unk_token_id
    assert len(pairs) == N == len({*pairs.texts}) and pairs.clean.shape == pairs.corrupted.shape
    assert torch.equal(storybook.content(pairs.clean), storybook.content(pairs.corrupted))  # equal lengths
    for row, text in enumerate(pairs.texts):
        last = int(pairs.end[row]) + 1
        clean, corrupted = pairs.clean[row, 1:last].tolist(), pairs.corrupted[row, 1:last].tolist()
        assert clean == storybook.to_ids(text) and unknown not in clean + corrupted
        (bracket,) = still_open("".join(map(storybook.token_text, clean)))
        assert storybook.to_ids(CLOSING[bracket]) == [int(pairs.answer[row])]
        assert still_open("".join(map(storybook.token_text, corrupted))) == ""
        assert clean[-1] == corrupted[-1]  # what differs stands before the last token
        assert pairs.foil[row] == pairs.rival[row] != pairs.answer[row]


def test_templates_come_about_equally_often(pairs):
    often = Counter(pairs.groups.tolist()).values()
    assert len(often) == 6 and max(often) - min(often) <= 3


def test_the_splits_share_no_template_and_no_word(storybook, task):
    assert task.shared == ()
    assert not {*task.templates["selection"]} & {*task.templates["test"]}
    for kind in WORDS:
        assert not {*task.words["selection"][kind]} & {*task.words["test"][kind]}
        assert all(task.words[split][kind] for split in SPLITS)


def test_the_seed_decides(storybook, task):
    first, same, other = (task.pairs(storybook, "test", 12, seed=seed) for seed in (0, 0, 1))
    assert first.texts == same.texts != other.texts and torch.equal(first.corrupted, same.corrupted)


def test_storybook_closes_brackets_and_the_corrupted_prompt_is_what_undoes_it(storybook, pairs):
    score = task_score(storybook, pairs)
    assert score.accuracy.value == score.top1 == 1.0 and score.n == N and score.accuracy.low > 0.9
    assert "the model itself does this task" in score.sentence()
    control = task_score(storybook, replace(pairs, clean=pairs.corrupted))
    assert control.accuracy.value <= 0.1 and control.logit_difference.value < -5
    exchanged = torch.arange(N) % 4 < 2  # control: half of the answers and foils change places
    answer, foil = pairs.answer.where(exchanged, pairs.foil), pairs.foil.where(exchanged, pairs.answer)
    assert abs(task_score(storybook, replace(pairs, answer=answer, rival=foil)).accuracy.value - 0.5) <= 0.05


def test_words_that_do_not_fit_a_tokenizer_are_passed_over():
    """In pieces of four letters "print(x" is as long as "y = x", but not as "right = x"."""
    model = Pieces(4)
    template = brackets.BracketTemplate("print(<var2>", "<var> = <var2>", ")", "\n")
    task = BracketTask({"test": [template]}, {"test": {"var": ["x", "y", "right"]}}, ())
    pairs = task.pairs(model, "test", 30, seed=0)
    assert {*pairs.texts} == {"print(x", "print(y", "print(right"}
    right = model.to_ids(" right")[0]
    assert not (pairs.corrupted[:, 0] == right).any() and not (pairs.corrupted[:, 0] == model.to_ids("right")[0]).any()


def test_with_few_words_it_says_what_is_shared(storybook, monkeypatch):
    monkeypatch.setitem(brackets.WORDS, "city", ("London", "Paris", "Zebedee"))
    task = BracketTask.of(storybook)
    assert task.shared == ("words for <city>",)
    assert task.words["selection"]["city"] == task.words["test"]["city"] == ["London", "Paris"]


def test_with_one_template_it_says_so(storybook, monkeypatch):
    monkeypatch.setattr(brackets, "TEMPLATES", TEMPLATES[:1])
    task = BracketTask.of(storybook)
    assert task.shared == ("templates",) and task.templates["selection"] == task.templates["test"]


def test_a_model_that_no_template_fits_is_told_why(storybook, monkeypatch):
    monkeypatch.setattr(
        brackets, "TEMPLATES", (brackets.BracketTemplate("Quickly (the <var>", "Quickly, the <var>", ")", "."),)
    )
    with user_error("'Quickly'", "storybook"):
        BracketTask.of(storybook)
    monkeypatch.setattr(brackets, "TEMPLATES", (brackets.BracketTemplate("the (<var>", "the <var>", ")", "."),))
    with user_error("equally long"):
        BracketTask.of(storybook)
    monkeypatch.setitem(brackets.WORDS, "var", ("Zebedee",))
    with user_error("<var>"):
        BracketTask.of(storybook)
