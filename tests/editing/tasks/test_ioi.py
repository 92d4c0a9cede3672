"""`editing/tasks/ioi.py`: what differs between clean and corrupted prompts, and that storybook can do them."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from pieces import Pieces
from prompt_texts import EVERYONE, id_of, people
from tiny import user_error

from editing.tasks import ioi, names
from editing.tasks.ioi import Corruption, IOITask, Role
from editing.tasks.pairs import PromptPairs
from editing.tasks.score import task_score
from editing.tasks.task import task_of

N = 64


@pytest.fixture(scope="module")
def task(storybook) -> IOITask:
    return IOITask.of(storybook)


@pytest.fixture(scope="module", params=[(c, s) for c in Corruption for s in ("selection", "test")], ids="-".join)
def pairs(request, storybook, task) -> PromptPairs:
    corruption, split = request.param
    return task.pairs(storybook, corruption, split, N, seed=0)


def roles(text: str) -> tuple[str, str]:
    """(subject, indirect object): the name that stands twice, and the one that stands once."""
    (subject, twice), (io, once) = Counter(people(text)).most_common()
    assert (twice, once) == (2, 1)
    return subject, io


def test_pairs_fit_together(storybook, pairs):
    assert pairs.clean.shape == pairs.corrupted.shape and len(pairs) == N == len(set(pairs.texts))
    content = storybook.content(pairs.clean)
    for row, text in enumerate(pairs.texts):
        end = int(pairs.end[row])
        assert pairs.clean[row, 1 : end + 1].tolist() == storybook.to_ids(text)
        assert int(pairs.clean[row, 0]) == int(pairs.corrupted[row, 0]) == storybook.bos_id
        assert content[row, 1 : end + 1].all() and not content[row, end + 1 :].any()
    assert torch.equal(storybook.content(pairs.corrupted), content)  # equal lengths


def test_clean_and_corrupted_differ_where_documented(storybook, pairs):
    """io: at the only mention of the indirect object. swap and abc: at the second mention of the subject."""
    for row, text in enumerate(pairs.texts):
        subject, io = roles(text)
        ids = storybook.to_ids(text)
        if pairs.name == "ioi-io":
            expected = [i for i, token in enumerate(ids) if token == id_of(storybook, io)]
        else:
            expected = [i for i, token in enumerate(ids) if token == id_of(storybook, subject)][1:]
        different = (pairs.clean[row] != pairs.corrupted[row]).nonzero()[:, 0] - 1
        assert different.tolist() == expected and len(expected) == 1


def test_answers_are_as_documented(storybook, pairs):
    for row, text in enumerate(pairs.texts):
        subject, io = roles(text)
        clean, corrupted = pairs.clean[row].tolist(), pairs.corrupted[row].tolist()
        answer, foil = int(pairs.answer[row]), int(pairs.foil[row])
        assert answer == id_of(storybook, io) and (clean.count(answer), clean.count(id_of(storybook, subject))) == (
            1,
            2,
        )
        assert pairs.rival[row] == id_of(storybook, subject)
        if pairs.name == "ioi-io":
            assert foil not in clean and corrupted.count(foil) == 1 and answer not in corrupted
        else:
            assert foil == id_of(storybook, subject)
            assert (corrupted.count(foil), corrupted.count(answer)) == (1, 2 if pairs.name == "ioi-swap" else 1)


def test_roles_are_where_the_names_stand(storybook, pairs):
    """Counted in words of the text; prompts without BOS have everything one place earlier."""
    assert set(pairs.roles) == {"IO", "S1", "S2"} and torch.equal(pairs.place("END"), pairs.end)
    rows = torch.arange(len(pairs))
    for row, text in enumerate(pairs.texts):
        subject, indirect = roles(text)
        ids = [storybook.bos_id, *storybook.to_ids(text)]
        places = {
            name: [i for i, token in enumerate(ids) if token == id_of(storybook, name)] for name in (subject, indirect)
        }
        positions = [int(pairs.place(role)[row]) for role in ("S1", "S2", "IO")]
        assert positions == [*places[subject], *places[indirect]]
    assert torch.equal(pairs.clean[rows, pairs.place(Role.IO)], pairs.answer)
    assert len({tuple(place.tolist()) for place in (pairs.place("IO"), pairs.place("S1"), pairs.place("S2"))}) == 3
    with user_error("'S3'", "IO, S1, S2, END"):
        pairs.place("S3")


def test_roles_without_bos_and_in_other_tasks(storybook, task, published):
    pairs = [task.pairs(storybook, Corruption.SWAP, "test", 8, seed=0, prepend_bos=bos) for bos in (True, False)]
    for role in Role:
        assert torch.equal(pairs[0].place(role), pairs[1].place(role) + 1)
    whole = published.pairs(Pieces(20), Corruption.IO, "test", 30, seed=0)
    assert torch.equal(whole.clean[torch.arange(30), whole.place(Role.IO)], whole.answer)
    other = replace(whole, roles={})
    assert torch.equal(other.place("END"), whole.end)
    with user_error("'IO'", "END"):
        other.place("IO")


def test_half_of_the_prompts_are_abba(pairs):
    abba = sum(people(text)[1] == people(text)[2] for text in pairs.texts)
    baba = sum(people(text)[0] == people(text)[2] for text in pairs.texts)
    assert abba == baba == N // 2


def test_no_word_is_unknown(storybook, pairs):
    unknown = storybook.tokenizer.unk_token_id
    assert unknown is not None
    for tokens in (pairs.clean, pairs.corrupted):
        assert not (tokens == unknown).any()


def test_selection_and_test_share_neither_names_nor_templates(storybook, task):
    assert task.shared == ()
    assert not {*task.names["selection"]} & {*task.names["test"]}
    assert not {*task.templates["selection"]} & {*task.templates["test"]}
    for corruption in Corruption:
        used = {s: task.pairs(storybook, corruption, s, N, seed=0) for s in ("selection", "test")}
        tokens = {s: {*p.clean.flatten().tolist(), *p.corrupted.flatten().tolist()} for s, p in used.items()}
        for split, other in (("selection", "test"), ("test", "selection")):
            assert not {id_of(storybook, name) for name in task.names[other]} & tokens[split]


def test_the_seed_decides(storybook, task):
    def draw(seed: int) -> PromptPairs:
        return task.pairs(storybook, Corruption.IO, "test", 16, seed=seed)

    first, same, other = draw(0), draw(0), draw(1)
    assert first.texts == same.texts != other.texts
    for field in ("clean", "corrupted", "answer", "foil", "end"):
        assert torch.equal(getattr(first, field), getattr(same, field))


def test_bos_is_left_out_when_asked(storybook, task):
    without = task.pairs(storybook, Corruption.SWAP, "test", 8, seed=0, prepend_bos=False)
    assert without.clean[:, 0].ne(storybook.bos_id).all()
    assert without.clean[0, : without.end[0] + 1].tolist() == storybook.to_ids(without.texts[0])


def test_both_halves_have_names_of_both_classes(task):
    """Once, all names of the selection were female and those of the test male."""
    for split in ("selection", "test"):
        share = sum(name in names.FEMALE for name in task.names[split]) / len(task.names[split])
        assert 0.4 < share < 0.6


@pytest.mark.parametrize("corruption", Corruption)
def test_storybook_does_ioi_and_the_corrupted_prompt_is_what_undoes_it(storybook, task, corruption):
    pairs = task.pairs(storybook, corruption, "test", N, seed=0)
    score = task_score(storybook, pairs)
    assert score.accuracy.value >= 0.99 and score.n == N and score.logit_difference.value > 1
    assert "the model itself does this task" in score.sentence()
    control = task_score(storybook, replace(pairs, clean=pairs.corrupted))
    assert "does not do this task" in control.sentence()
    if corruption is Corruption.ABC:  # nothing tells which of two is due
        assert 0.35 < control.accuracy.value < 0.65 and control.accuracy.low < 0.5 < control.accuracy.high
    else:
        assert control.top1 <= 0.05  # in `io` the third name is due, in `swap` the subject
    exchanged = torch.arange(N) % 2 == 0  # control: every second answer and rival change places
    answer = pairs.answer.where(exchanged, pairs.rival)
    shuffled = task_score(storybook, replace(pairs, answer=answer, rival=pairs.rival.where(exchanged, pairs.answer)))
    assert abs(shuffled.accuracy.value - 0.5) < 0.05


def test_pairs_for_a_model_in_which_other_words_take_several_tokens():
    model = Pieces(4)
    pairs = IOITask.of(model).pairs(model, Corruption.IO, "test", 12, seed=0)
    assert ((pairs.clean != pairs.corrupted).sum(1) == 1).all()
    assert all(len(name) <= 4 for text in pairs.texts for name in people(text))


@pytest.fixture(scope="module")
def published() -> IOITask:
    return IOITask.of(Pieces(12))


def test_a_model_with_the_words_gets_the_published_form(published):
    """15 sentences, whose two orders are the 15 ABBA and 15 BABA templates; 99 names, 8 places, 8 objects."""
    assert published.form == "published" and published.shared == ()
    assert sorted(published.templates["selection"] + published.templates["test"]) == sorted(ioi.PUBLISHED)
    assert len({*ioi.PUBLISHED}) == 15 and len({*names.PUBLISHED}) == 99
    assert [len(words) for words in published.words.values()] == [8, 8]
    assert {*published.names["selection"], *published.names["test"]} == {*names.PUBLISHED}
    assert not {*published.names["selection"]} & {*published.names["test"]}
    assert not {*published.templates["selection"]} & {*published.templates["test"]}


@pytest.mark.slow
@pytest.mark.parametrize("corruption", Corruption)
def test_published_prompts_are_the_sentences_in_both_orders(published, corruption):
    """Every prompt is one of the split's sentences with its words filled in; either of the two gives, half and half."""
    pairs = published.pairs(Pieces(12), corruption, "test", 200, seed=0)
    shapes = {t: re.compile(re.sub(r"\\{(\w+)\\}", _group_for(), re.escape(t))) for t in published.templates["test"]}
    seen, baba = set(), 0
    for text, group in zip(pairs.texts, pairs.groups.tolist(), strict=True):
        (template,) = (t for t, shape in shapes.items() if shape.fullmatch(text))
        filled = shapes[template].fullmatch(text).groupdict()
        assert filled["S"] in (filled["A"], filled["B"]) and filled["A"] != filled["B"]
        assert {filled["A"], filled["B"]} <= {*published.names["test"]}
        baba += filled["S"] == filled["A"]
        seen.add((template, group))
    assert len(seen) == len(published.templates["test"]) == len({group for _, group in seen})  # one group a sentence
    assert baba == 100
    assert ((pairs.clean != pairs.corrupted).sum(1) == 1).all()


def _group_for():
    """A replacement that names each slot once and refers back to it afterwards."""

    def replacement(match: re.Match) -> str:
        name = match.group(1)
        again = name in match.string[: match.start()].replace("\\", "").replace("}", "{").split("{")
        return f"(?P={name})" if again else rf"(?P<{name}>\w+)"

    return replacement


def test_groups_are_the_sentences(storybook, pairs):
    """Prompts of one group are equal but for names, places and gifts; those of two groups are not."""
    shapes = {}
    for text, group in zip(pairs.texts, pairs.groups.tolist(), strict=True):
        shape = re.sub(r"\b(" + "|".join([*EVERYONE, *ioi.PLACES, *ioi.GIFTS]) + r")\b", "_", text)
        shapes.setdefault(group, set()).add(shape)
    assert all(len(sentences) == 1 for sentences in shapes.values())
    assert len({shape for sentences in shapes.values() for shape in sentences}) == len(shapes) == 5


def test_prompts_are_distinct_even_if_there_are_fewer(storybook, monkeypatch):
    """Once, prompts were repeated to fill up the number asked for."""
    only_names(monkeypatch, "Mary", "Anna", "Lucy")
    monkeypatch.setattr(ioi, "TEMPLATES", ioi.TEMPLATES[:1])
    monkeypatch.setattr(ioi, "PLACES", ["store"])
    monkeypatch.setattr(ioi, "GIFTS", ["ring"])
    task = IOITask.of(storybook)
    pairs = task.pairs(storybook, Corruption.SWAP, "test", 64, seed=0)
    assert task.shared == ("names", "templates") and len(pairs) == len({*pairs.texts}) == 12


def only_names(monkeypatch, *known: str) -> None:
    """The task's names are these, and as many that no model knows."""
    monkeypatch.setattr(names, "FEMALE", known)
    monkeypatch.setattr(names, "MALE", tuple(f"Zebedee{i}" for i, _ in enumerate(known)))


def test_with_few_names_it_says_what_is_shared(storybook, monkeypatch):
    only_names(monkeypatch, "Mary", "Anna", "Lucy")
    task = IOITask.of(storybook)
    assert task.shared == ("names",)
    assert task.names["selection"] == task.names["test"] == ["Mary", "Anna", "Lucy"]
    assert len(task.pairs(storybook, Corruption.IO, "test", 8, seed=0)) == 8


def test_with_eight_names_nothing_is_shared(storybook, monkeypatch):
    only_names(monkeypatch, "Mary", "Anna", "Lucy", "Emma", "Kate", "Grace", "Clara", "Sarah")
    task = IOITask.of(storybook)
    assert task.shared == () and len(task.names["selection"]) == len(task.names["test"]) == 4


def test_with_fewer_than_three_names_it_refuses(storybook, monkeypatch):
    only_names(monkeypatch, "Mary", "Anna")
    with user_error("2", "3", "'Zebedee0'"):
        IOITask.of(storybook)


def test_a_name_that_the_tokenizer_joins_with_its_neighbour_is_left_out(storybook, monkeypatch):
    """Once, one such name ended the whole experiment."""
    to_ids, joined = storybook.to_ids, storybook.to_ids(" ring")[0]

    def joining(text: str) -> list[int]:
        parts = re.split("( Mary(?=,))", text)
        return [token for part in parts for token in ([joined] if part == " Mary" else to_ids(part))]

    whole = IOITask.of(storybook)
    monkeypatch.setattr(storybook, "to_ids", joining)
    task = IOITask.of(storybook)
    assert "Mary" in whole.names["selection"] and "Mary" not in task.names["selection"] + task.names["test"]
    assert whole.notes == () and [note.rpartition(": ")[2] for note in task.notes] == ["Mary"]
    assert sum(map(len, task.names.values())) == sum(map(len, whole.names.values())) - 1
    assert len(task.pairs(storybook, Corruption.IO, "selection", 32, seed=0)) == 32
    assert "Mary" in task_of("ioi", storybook).about


def test_a_model_that_knows_no_template_is_told_a_word(storybook, monkeypatch):
    monkeypatch.setattr(ioi, "TEMPLATES", ("Quickly {A} and {B} went to the {place}. {S} gave a {gift} to",))
    with user_error("'Quickly'"):
        IOITask.of(storybook)
