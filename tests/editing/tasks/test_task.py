"""Tasks by name: every one gives pairs of the same kind, and says what its splits share."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import user_error

from editing.tasks.pairs import PromptPairs
from editing.tasks.score import task_score
from editing.tasks.task import TASKS, Task, task_and_corruption, task_of


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file of a user's own: who is happy."""
    path = tmp_path_factory.mktemp("own") / "happy.jsonl"
    people = zip("Mary Anna Lucy Emma Kate Clara".split(), "John Tom Paul Mark Jack Adam".split(), strict=True)
    lines = [
        {"clean": f"{a} was happy because", "corrupted": f"{b} was happy because", "answer": "she", "foil": "he"}
        for a, b in people
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module", params=[*TASKS, "file"])
def any_task(request, storybook, path) -> Task:
    return task_of(path if request.param == "file" else request.param, storybook)


def test_every_task_gives_pairs_that_the_model_gets_right(storybook, any_task):
    for split in any_task.splits:
        pairs = any_task.pairs(split, 12, seed=0)
        assert isinstance(pairs, PromptPairs) and 1 < len(pairs) <= 12 and len(pairs.groups) == len(pairs)
        assert pairs.clean.shape == pairs.corrupted.shape and (pairs.clean != pairs.corrupted).any(1).all()
        assert (pairs.answer != pairs.foil).all() and (pairs.answer != pairs.rival).all()
        score = task_score(storybook, pairs)
        assert score.accuracy.value == 1.0 and score.accuracy.high == 1.0


def test_the_splits_have_no_prompt_in_common(any_task):
    assert (
        any_task.shared == ()
        and "the splits share no " in any_task.about
        and {"selection", "test"} <= {*any_task.splits}
    )
    parts = [{*any_task.pairs(split, 100, seed=0).texts} for split in any_task.splits]
    assert sum(map(len, parts)) == len(set().union(*parts))


def test_who_asks_for_everything_gets_at_most_so_many(any_task):
    """Once, a million prompts were drawn and, where there were fewer, twenty times as many tried."""
    pairs = replace(any_task, at_most=150).pairs("test", 10**6, seed=0)
    assert len(pairs) == len({*pairs.texts}) == (150 if any_task.name in TASKS else 3)


def test_the_seed_decides(any_task):
    first, same = (any_task.pairs("test", 3, seed=0) for _ in range(2))
    assert first.texts == same.texts and torch.equal(first.corrupted, same.corrupted)


def test_corruptions_are_those_of_the_task(storybook):
    ioi = task_of("ioi", storybook)
    assert ioi.corruptions == ("io", "swap", "abc")
    names = [ioi.pairs("test", 4, seed=0, corruption=c).name for c in (None, *ioi.corruptions)]
    assert names == ["ioi-io", "ioi-io", "ioi-swap", "ioi-abc"]
    with user_error("'role'", "io, swap, abc"):
        ioi.pairs("test", 4, seed=0, corruption="role")
    with user_error("brackets", "'swap'"):
        task_of("brackets", storybook).pairs("test", 4, seed=0, corruption="swap")


def test_a_corruption_is_named_behind_its_task(storybook):
    for text, expected in (("ioi", None), (" ioi, swap ", "swap"), ("brackets", None)):
        task, corruption = task_and_corruption(text, storybook)
        assert (task.name, corruption) == (text.split(",")[0].strip(), expected)
    for text, words in (("ioi, role", "io, swap, abc"), ("brackets, swap", "only one"), ("oii, swap", "no task")):
        with user_error(words):
            task_and_corruption(text, storybook)


def test_pronouns_name_their_transfer_form(storybook):
    transfer = task_of(task_of("pronouns", storybook).transfer, storybook)
    assert transfer.name == "possessives" and transfer.transfer is None
    her, his = (storybook.to_ids(word)[0] for word in ("her", "his"))
    assert {*transfer.pairs("test", 8, seed=0).answer.tolist()} == {her, his}


def test_bos_is_left_out_when_asked(storybook, any_task):
    with_bos, without = (any_task.pairs("test", 3, seed=0, prepend_bos=bos) for bos in (True, False))
    assert torch.equal(with_bos.clean[:, 1:], without.clean) and (with_bos.clean[:, 0] == storybook.bos_id).all()


def test_lines_that_do_not_fit_are_skipped_if_asked(storybook, path, tmp_path):
    more = tmp_path / "more.jsonl"
    unfit = {"clean": "Zebedee ran", "corrupted": "Ermintrude ran", "answer": "home", "foil": "away"}
    more.write_text(f"{path.read_text()}\n{json.dumps(unfit)}")
    with user_error("line 7", "'Zebedee'", "1 of 7"):
        task_of(more, storybook)
    assert task_of(more, storybook, skip_unfit=True).about.startswith(
        "6 pairs (1 more do not fit); the splits share no "
    )


def test_what_does_not_exist_is_refused(storybook, tmp_path, any_task):
    with user_error("'irony'", "ioi, pronouns, possessives, brackets", ".jsonl"):
        task_of("irony", storybook)
    with user_error("'pronuns'", "did you mean pronouns?"):
        task_of("pronuns", storybook)
    with user_error("gone.jsonl"):
        task_of(tmp_path / "gone.jsonl", storybook)
    with user_error("'training'", "selection"):
        any_task.pairs("training", 4, seed=0)
    with user_error("at least one", "0"):
        any_task.pairs("test", 0, seed=0)


@pytest.mark.parametrize("name", TASKS)
def test_a_model_without_the_words_is_refused_by_one_of_them(tiny_models, name, monkeypatch):
    model = tiny_models["gpt2"]
    monkeypatch.setattr(model, "to_ids", lambda text: [model.tokenizer.unk_token_id] * max(1, len(text.split())))
    with user_error("'"):
        task_of(name, model)
