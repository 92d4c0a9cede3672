"""Questions of tokens: the grammar answers as the characters do; labels of texts stand at their last tokens."""

import json

import pytest
import torch
from handmade import Circuit, normal
from tiny import user_error

from circuits.features.predicates import CLOSING, QUOTES, predicates
from editing.metrics import resampled
from sae_core.dictionaries.baselines import Basis
from subrank.studies.metrics.reading import Reading, Rows, read_sites
from subrank.studies.metrics.tasks import (
    LEAST,
    NOT_ASKED,
    Asked,
    Questions,
    answered,
    kept,
    knows_grammar,
    labels_at,
    of_characters,
    of_grammar,
    of_labels,
)


def test_what_the_grammar_says_is_open_the_characters_say_too(storybook):
    assert knows_grammar(storybook) and not knows_grammar(Circuit().model)
    training, held = of_grammar(storybook, 12, 64, seed=0)
    assert len(training.tokens) == len(held.tokens) == 12 and not torch.equal(training.tokens, held.tokens)
    inside = predicates(storybook, training.tokens)
    by_characters = torch.stack([inside[f"inside {mark}"] for mark in (*CLOSING, *QUOTES)]).any(0)
    answer = training.answers["a bracket or quote is open"]
    known = answer != NOT_ASKED
    assert torch.equal(answer[known] == 1, by_characters[known]) and by_characters[known].any()
    subject = training.answers["a woman is the subject"]
    assert {*subject.unique().tolist()} == {NOT_ASKED, 0, 1}


def test_a_sentence_begins_behind_a_full_stop(storybook):
    tokens = torch.tensor([[0, *storybook.to_ids("Alice went home . Then she slept .")]])
    answers = of_characters(storybook, tokens).answers["first of a sentence"]
    assert [storybook.token_text(int(t)).strip() for t in tokens[answers == 1]] == ["Then"]


def written(path, lines):
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_a_label_is_asked_at_the_last_token_and_the_texts_are_split(storybook, tmp_path):
    words = ["home", "Then", "she", "went", ".", "Alice", "slept", "the", "a", "and"]
    texts = [f"{a} {b}" for a in words for b in words]
    lines = [{"text": text, "label": "home" in text, "task": "home"} for text in texts]
    lines += [{"text": text, "label": text.startswith("a "), "task": "rare"} for text in texts[:20]]
    training, held = of_labels(storybook, written(tmp_path / "probe.jsonl", lines * 6))
    assert kept(training, held) == ["home"]  # the other has too few
    for part in (training, held):
        row, place = (part.answers["home"] != NOT_ASKED).nonzero().T
        assert (place == 2).all() and (part.tokens[row, place] != 0).all()
    rows = {tuple(row.tolist()) for row in training.tokens}
    assert not rows & {tuple(row.tolist()) for row in held.tokens}


def test_a_file_of_labels_that_is_none_is_refused_by_its_line(storybook, tmp_path):
    right = {"text": "Alice went home", "label": True}
    for wrong in ({"text": "Alice"}, {"label": True}, {"text": "", "label": 0}, {"text": "Bob", "label": "yes"}, [1]):
        with user_error("probe.jsonl, line 2"):
            of_labels(storybook, written(tmp_path / "probe.jsonl", [right, wrong]))
    with user_error("probe.jsonl", str(LEAST)):
        of_labels(storybook, written(tmp_path / "probe.jsonl", [right] * 50))


def test_labels_stand_beside_the_activations_of_the_tokens_that_count():
    tokens = torch.arange(60).view(3, 20)
    answers = {"a": torch.full_like(tokens, NOT_ASKED), "b": torch.full_like(tokens, NOT_ASKED)}
    answers["a"][0, 4], answers["b"][0, 4], answers["b"][2, 7], answers["b"][1, 1] = 1, 0, 1, 1
    counted = torch.ones_like(tokens, dtype=torch.bool)
    counted[1, 1] = False  # an outlier
    labels = labels_at(Reading(tokens, counted, tokens[..., None].float()), Questions(tokens, answers), ["a", "b"])
    assert labels.rows.x[:, 0].tolist() == [4, 47] and labels.rows.context.tolist() == [0, 2]
    assert labels.asked.tolist() == [[True, False], [True, True]]
    assert labels.true.tolist() == [[True, False], [False, True]]
    assert labels.rows.weights.equal(resampled(range(3), 0))


def planted_answers(n_tasks: int, n_each: int) -> tuple[Reading, Questions]:
    """Tasks of which each is asked of texts of its own, at their last tokens; every other answer is yes."""
    tokens = torch.arange(n_tasks * n_each * 2).view(-1, 2)
    answers = {f"task {i}": torch.full_like(tokens, NOT_ASKED) for i in range(n_tasks)}
    for i, each in enumerate(answers.values()):
        each[i * n_each : (i + 1) * n_each, 1] = torch.arange(n_each) % 2
    return Reading(tokens, tokens >= 0, normal(*tokens.shape, 3)), Questions(tokens, answers)


def test_many_tasks_have_tokens_left_when_they_are_thinned():
    """Of each task so many tokens are drawn, not of all together; and not every other one, which may be one answer."""
    reading, questions = planted_answers(20, 40)
    labels = labels_at(reading, questions, list(questions.answers), most=20)
    assert (labels.asked.sum(1) == 20).all() and answered(labels, labels) == list(questions.answers)
    assert ((labels.asked & labels.true).sum(1) >= 3).all() and ((labels.asked & ~labels.true).sum(1) >= 3).all()
    shared = Questions(questions.tokens, {name: torch.ones_like(questions.tokens) for name in "ab"})
    assert len(labels_at(reading, shared, ["a", "b"], most=20).rows.x) == 20  # the same tokens for both


def test_a_task_whose_answers_are_all_left_out_is_not_asked():
    reading, questions = planted_answers(2, 40)
    counted = reading.counted.clone()
    counted[40::2] = False  # those of one answer to the second
    less = Reading(reading.tokens, counted, reading.h)
    asked = Asked.of((questions, questions), (less, reading), Basis(torch.eye(3), torch.zeros(3)))
    assert asked and asked.training.names == ("task 0",) and asked.component.loss.isfinite().all()
    nothing = Reading(reading.tokens, torch.zeros_like(counted), reading.h)
    assert Asked.of((questions, questions), (nothing, reading), Basis(torch.eye(3), torch.zeros(3))) is None


def test_activations_that_do_not_fit_in_memory_are_not_begun_to_read():
    model = Circuit().model
    with user_error("not enough memory", "--contexts"):
        read_sites(model, torch.empty(10**8, 10**3, dtype=torch.long, device="meta"), {}, model.sites())


@pytest.mark.parametrize("most", [10, 500])
def test_thinned_tokens_are_of_all_kinds_of_a_text_with_a_period(most):
    """Every tenth token is of one kind; a stride of ten would take these alone."""
    x = (torch.arange(1000) % 10 == 0).float()[:, None]
    few = Rows(x, torch.zeros(1000, dtype=torch.long), resampled(range(1), 0)).thinned(most)
    assert len(few.x) == most and few.x.mean() == pytest.approx(0.1, abs=0.2)
