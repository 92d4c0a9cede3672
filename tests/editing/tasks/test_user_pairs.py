"""Files of pairs: what is read is what was written, lines that hang together stay together, mistakes get a line."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import user_error

from editing.tasks.ioi import Corruption, IOITask
from editing.tasks.pairs import TextPair
from editing.tasks.score import task_score
from editing.tasks.task import task_of
from editing.tasks.user_pairs import Line, UserPairs, continued, divide, load_pairs, read_lines

AGREEMENT = {"clean": "The dogs", "corrupted": "The dog", "answer": "were", "foil": "was"}
THEIRS = {"clean_prefix": "The dogs", "patch_prefix": "The dog", "clean_answer": "were", "patch_answer": "was"}


def write(folder: Path, *lines: dict | str) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def a_pair(name: str, other: str, **more) -> dict:
    """A pair that storybook's vocabulary holds."""
    texts = {"clean": f"{name} was happy because", "corrupted": f"{other} was happy because"}
    return texts | {"answer": "she", "foil": "he"} | more


NAMES = ["Mary", "Anna", "Lucy", "Emma", "Kate", "Clara", "Sarah", "Laura", "Helen", "Ruth", "Nina", "Susan"]
MEN = ["John", "Tom", "Paul", "Mark", "Jack", "Adam", "Henry", "Simon", "Luke", "Max", "Leo", "Tim"]


# ---- reading ---------------------------------------------------------------------------------------


def test_a_task_written_to_a_file_is_read_back(storybook, tmp_path):
    task = IOITask.of(storybook)
    pairs = task.pairs(storybook, Corruption.IO, "test", 24, seed=0)
    lines = []
    for row, clean in enumerate(pairs.texts):
        ids = pairs.corrupted[row, 1 : pairs.end[row] + 1]
        words = {name: storybook.token_text(int(getattr(pairs, name)[row])) for name in ("answer", "foil", "rival")}
        corrupted = "".join(f" {storybook.token_text(i).strip()}" for i in ids.tolist())[1:]
        lines.append({"clean": clean, "corrupted": corrupted, "template": int(pairs.groups[row])} | words)
    read = load_pairs(write(tmp_path, *lines), storybook)
    for field in ("clean", "corrupted", "answer", "foil", "rival", "end", "groups"):
        assert torch.equal(getattr(read, field), getattr(pairs, field)), field
    assert read.texts == pairs.texts and read.name == "pairs"
    assert task_score(storybook, read) == task_score(storybook, pairs)


def test_the_agreement_files_of_others_read_the_same(tmp_path):
    """Their answers come without the space, their lines repeat, and `case` says nothing that we need."""
    (line,) = read_lines(write(tmp_path, AGREEMENT))
    (foreign,) = read_lines(write(tmp_path, THEIRS | {"case": "plural"}, THEIRS, "", THEIRS))
    assert foreign.pair == line.pair == TextPair("The dogs", "The dog", " were", " was", " was", line.pair.group)
    assert (foreign.number, foreign.split, foreign.template, foreign.words) == (1, None, None, ())


@pytest.mark.parametrize(
    ("prompt", "answer", "continuation"),
    [
        ("The dogs", "are", " are"),
        ("The dogs", " are", " are"),
        ("He came.", "She", " She"),
        ("len(x", ")", ")"),
        ("print(", "x", "x"),
        ('He said "', "hello", "hello"),
        ("It was ", "late", "late"),
        ("return x", "\n", "\n"),
    ],
)
def test_a_word_gets_its_space(prompt, answer, continuation):
    assert continued(prompt, answer) == continuation


def test_answers_as_the_model_reads_them(storybook, tmp_path):
    pairs = load_pairs(
        write(tmp_path, a_pair("Mary", "John"), a_pair("John", "Mary", answer="he", foil="she")), storybook
    )
    she, he = (storybook.to_ids(word)[0] for word in ("she", "he"))
    assert pairs.answer.tolist() == [she, he] and pairs.foil.tolist() == pairs.rival.tolist() == [he, she]
    assert pairs.groups.tolist() == [0, 0]  # the same two prompts, mirrored
    assert task_score(storybook, pairs).accuracy.value == 1.0
    without = load_pairs(tmp_path / "pairs.jsonl", storybook, prepend_bos=False)
    assert torch.equal(without.clean, pairs.clean[:, 1:])


# ---- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "clean, corrupted, answer, foil"),
        ({"clean": "The dogs", "corupted": "The dog"}, '"corrupted"'),
        (AGREEMENT | {"answer": 3}, '"answer"'),
        (AGREEMENT | {"foil": ""}, '"foil"'),
        (AGREEMENT | {"rival": ""}, '"rival"'),
        (AGREEMENT | {"split": "training"}, "'training'"),
        (AGREEMENT | {"template": [1]}, '"template"'),
        (AGREEMENT | {"words": "dog"}, '"words"'),
        ({"clean_prefix": "The dogs", "patch_prefix": "The dog", "clean_answer": "are"}, '"patch_answer"'),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, complaint):
    path = write(tmp_path, AGREEMENT, "", line)
    with user_error(str(path), "line 3:", complaint):
        read_lines(path)


def test_a_pair_has_one_label(tmp_path):
    labelled = [AGREEMENT | {"label": label} for label in ("plural", "plural", "singular")]
    assert len(read_lines(write(tmp_path, *labelled[:2]))) == 1
    with user_error("line 3", "repeats line 1", "label"):
        read_lines(write(tmp_path, *labelled))


def test_a_file_that_is_none_is_refused(tmp_path):
    with user_error("nothing.jsonl"):
        read_lines(tmp_path / "nothing.jsonl")
    with user_error("no pairs"):
        read_lines(write(tmp_path, "", ""))
    (tmp_path / "pairs.jsonl").write_bytes(b"\xff\xfe\x00")
    with user_error("UTF-8"):
        read_lines(tmp_path / "pairs.jsonl")
    with user_error("line 2", '"split"'):
        read_lines(write(tmp_path, AGREEMENT | {"split": "test"}, a_pair("Mary", "John")))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (a_pair("Zebedee", "John"), "'Zebedee'"),
        (a_pair("Mary", "John", answer="herself"), "'herself'"),
        (a_pair("Mary", "John", answer="she was"), "' she was'"),
        (a_pair("Mary", "John Tom"), "'John Tom'"),
        (a_pair("Mary", "Mary"), "same"),
        (a_pair("Mary", "John", foil="she"), "different"),
    ],
)
def test_a_line_that_does_not_fit_the_model_is_named(storybook, tmp_path, line, complaint):
    path = write(tmp_path, a_pair("Anna", "Tom"), line)
    with user_error(str(path), "line 2:", complaint):
        load_pairs(path, storybook)
    skipped = load_pairs(path, storybook, skip_unfit=True)
    assert skipped.texts == ("Anna was happy because",)
    assert UserPairs.of(path, storybook, skip_unfit=True).left_out == 1


def test_of_many_that_do_not_fit_the_first_is_named_and_all_are_counted(storybook, tmp_path):
    path = write(tmp_path, a_pair("Anna", "Tom"), a_pair("Zebedee", "Tom"), a_pair("Ermintrude", "Tom"))
    with user_error("line 2:", "'Zebedee'", "2 of 3"):
        load_pairs(path, storybook)
    with user_error("line 1:", "'Zebedee'"):
        load_pairs(write(tmp_path, a_pair("Zebedee", "Tom")), storybook, skip_unfit=True)


# ---- splits ----------------------------------------------------------------------------------------


def test_declared_splits_are_kept_and_leaks_are_told(storybook, tmp_path):
    lines = [a_pair("Mary", "John", split="train", template=1), a_pair("Anna", "Tom", split="test", template=2)]
    user = UserPairs.of(write(tmp_path, *lines), storybook)
    assert {split: [line.pair.clean[:4] for line in part] for split, part in user.splits.items()} == {
        "selection": ["Mary"],
        "test": ["Anna"],
    }
    assert user.shared == () and user.left_out == 0
    assert user.pairs(storybook, "test", 9, seed=0).texts == ("Anna was happy because",)
    with user_error("check", "selection, test"):
        user.pairs(storybook, "check", 1, seed=0)
    leaky = [a_pair("Mary", "John", split="train", template=1), a_pair("Mary", "Tom", split="test", template=1)]
    assert UserPairs.of(write(tmp_path, *leaky), storybook).shared == ("templates", "prompts")


def test_one_line_leaves_no_pairs_for_the_test(storybook, tmp_path):
    """Nothing can be divided: the test split is empty, and says so when it is asked for."""
    user = UserPairs.of(write(tmp_path, a_pair("Mary", "John")), storybook)
    assert [len(part) for part in user.splits.values()] == [1, 0]
    with user_error("no pairs for test", "selection"):
        user.pairs(storybook, "test", 4, seed=0)
    with user_error("no pairs for test", "selection"):
        task_of(tmp_path / "pairs.jsonl", storybook).pairs("test", 4, seed=0)


def test_undeclared_splits_share_no_template_and_no_prompt(storybook, tmp_path):
    lines = [a_pair(name, man, template=i % 4) for i, (name, man) in enumerate(zip(NAMES, MEN, strict=True))]
    user = UserPairs.of(write(tmp_path, *lines), storybook)
    templates = [{line.pair.group for line in part} for part in user.splits.values()]
    assert user.shared == () and not templates[0] & templates[1] and [len(t) for t in templates] == [2, 2]
    drawn = user.pairs(storybook, "test", 4, seed=0)
    assert len(drawn) == 4 and drawn.texts == user.pairs(storybook, "test", 4, seed=0).texts
    assert {*drawn.texts} <= {line.pair.clean for line in user.splits["test"]}


def test_splits_do_not_depend_on_the_order_of_lines(storybook, tmp_path):
    lines = [a_pair(name, man) for name, man in zip(NAMES, MEN, strict=True)]
    splits = UserPairs.of(write(tmp_path, *lines), storybook).splits
    same = UserPairs.of(write(tmp_path, *lines[::-1]), storybook).splits
    assert {split: {line.pair.clean for line in part} for split, part in splits.items()} == {
        split: {line.pair.clean for line in part} for split, part in same.items()
    }


def test_where_everything_hangs_together_it_says_what_is_shared():
    def lines(**shared) -> list[Line]:
        names_here = {"template": None, "words": ()} | shared
        return [Line(i, TextPair(f"{i}", f"{i} not", "a", "b", "b", i), None, **names_here) for i in range(8)]

    for joined, expected in (
        (lines(), ()),
        (lines(words=("dog",)), ("words",)),
        (lines(template="one"), ("templates",)),
        (lines(template="one", words=("dog",)), ("words", "templates")),
    ):
        splits, shared = divide(joined)
        assert shared == expected and [len(part) for part in splits.values()] == [4, 4]
    one_prompt = [Line(i, TextPair("same", f"{i}", "a", "b", "b", i), None, None, ()) for i in range(8)]
    assert divide(one_prompt)[1] == ("prompts",)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 5), st.integers(0, 12)), min_size=1))
def test_no_line_is_lost_and_what_is_not_told_is_not_shared(rows):
    """Whatever the lines have in common: a partition, whose common words, templates and prompts are all told."""
    lines = [
        Line(i, TextPair(f"clean {a}", f"corrupted {b}", "x", "y", "y", i), None, f"{t}" if t else None, (f"{w}",))
        for i, (a, b, t, w) in enumerate(rows)
    ]
    splits, shared = divide(lines)
    assert sorted(line.number for part in splits.values() for line in part) == list(range(len(lines)))
    assert len(lines) == 1 or all(splits.values())
    selection, test = splits.values()
    common = {
        "words": {w for line in selection for w in line.words} & {w for line in test for w in line.words},
        "templates": ({line.template for line in selection} & {line.template for line in test}) - {None},
        "prompts": {p for line in selection for p in line.prompts()} & {p for line in test for p in line.prompts()},
    }
    assert {kind for kind, things in common.items() if things} == {*shared}
