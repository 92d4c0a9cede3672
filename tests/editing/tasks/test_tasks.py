"""Prompts: what differs between clean and corrupted, who shares what with whom, and that storybook can do them."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pieces import Pieces
from tiny import user_error

from editing.removal.two_class_prompts import Contrast, model_score
from editing.tasks import ioi, names, pronouns
from editing.tasks.ioi import Corruption, IOITask, Role
from editing.tasks.pairs import Mention, OwnScore, PromptPairs, TextPair, as_tokens, at_end, own_score, wilson_interval
from editing.tasks.pronouns import Form, PronounPrompts, Split, pronoun_ids, pronoun_pairs, pronoun_prompts
from sae_core.model.language_model import LanguageModel

N = 64
EVERYONE = {*names.FEMALE, *names.MALE}


@pytest.fixture(scope="module")
def task(storybook) -> IOITask:
    return IOITask.of(storybook)


@pytest.fixture(scope="module", params=[(c, s) for c in Corruption for s in ("selection", "test")], ids="-".join)
def pairs(request, storybook, task) -> PromptPairs:
    corruption, split = request.param
    return task.pairs(storybook, corruption, split, N, seed=0)


@pytest.fixture(scope="module")
def prompts(storybook) -> dict[Split, PronounPrompts]:
    return {split: pronoun_prompts(storybook, [split], N, seed=0) for split in Split}


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)


def people(text: str) -> list[str]:
    """Names in `text`, as often as they stand there."""
    return [word for word in words(text) if word in EVERYONE]


def template(text: str) -> str:
    for name in people(text):
        text = re.sub(rf"\b{name}\b", "{N}", text)
    return text


def id_of(model: LanguageModel, name: str) -> int:
    (token,) = model.to_ids(f" {name}")
    return token


def roles(text: str) -> tuple[str, str]:
    """(subject, indirect object): the name that stands twice, and the one that stands once."""
    (subject, twice), (io, once) = Counter(people(text)).most_common()
    assert (twice, once) == (2, 1)
    return subject, io


# ---- IOI -------------------------------------------------------------------------------------------


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
        found = [int(pairs.place(role)[row]) for role in ("S1", "S2", "IO")]
        assert found == [*places[subject], *places[indirect]]
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


def test_a_mention_that_is_not_there_is_refused(storybook):
    pair = TextPair("Mary went to", "Anna went to", " John", " Tom", " Tom", 0, (Mention("S2", " Mary", 1),))
    with user_error("'Mary'", "1 times", "S2"):
        as_tokens(storybook, "any", [pair], prepend_bos=True)


def test_half_of_the_prompts_are_abba(pairs):
    abba = sum(people(text)[1] == people(text)[2] for text in pairs.texts)
    baba = sum(people(text)[0] == people(text)[2] for text in pairs.texts)
    assert abba == baba == N // 2


def test_no_word_is_unknown(storybook, pairs, prompts):
    unknown = storybook.tokenizer.unk_token_id
    assert unknown is not None
    for tokens in (pairs.clean, pairs.corrupted, *(p.tokens for p in prompts.values())):
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

    one, same, other = draw(0), draw(0), draw(1)
    assert one.texts == same.texts != other.texts
    for field in ("clean", "corrupted", "answer", "foil", "end"):
        assert torch.equal(getattr(one, field), getattr(same, field))
    assert (
        pronoun_prompts(storybook, [Split.TEST], 16, seed=0).texts
        == pronoun_prompts(storybook, [Split.TEST], 16, seed=0).texts
    )
    assert (
        pronoun_prompts(storybook, [Split.TEST], 16, seed=0).texts
        != pronoun_prompts(storybook, [Split.TEST], 16, seed=1).texts
    )


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
    own = own_score(storybook, pairs)
    assert own.accuracy >= 0.99 and own.n == N and own.logit_difference > 1
    assert "the model itself does this task" in own.sentence()
    control = own_score(storybook, replace(pairs, clean=pairs.corrupted))
    assert "does not do this task" in control.sentence()
    if corruption is Corruption.ABC:  # nothing tells which of two is due
        assert 0.35 < control.accuracy < 0.65 and control.accuracy_interval[0] < 0.5 < control.accuracy_interval[1]
    else:
        assert control.top1 <= 0.05  # in `io` the third name is due, in `swap` the subject
    exchanged = torch.arange(N) % 2 == 0  # control: every second answer and rival change places
    answer = pairs.answer.where(exchanged, pairs.rival)
    shuffled = own_score(storybook, replace(pairs, answer=answer, rival=pairs.rival.where(exchanged, pairs.answer)))
    assert abs(shuffled.accuracy - 0.5) < 0.05


def test_own_score_equals_a_plain_loop(storybook, task):
    pairs = task.pairs(storybook, Corruption.SWAP, "test", 10, seed=3)
    pairs = replace(pairs, answer=pairs.answer.where(torch.arange(10) > 2, pairs.foil), rival=pairs.foil + 1)
    right = top = 0
    difference = 0.0
    for row, text in enumerate(pairs.texts):
        logits = storybook.logits(torch.tensor([[storybook.bos_id, *storybook.to_ids(text)]]))[0, -1]
        answer, foil = int(pairs.answer[row]), int(pairs.rival[row])
        right += bool(logits[answer] > logits[foil])
        top += int(logits.argmax()) == answer
        difference += float(logits[answer] - logits[foil])
    own = own_score(storybook, pairs)
    assert (own.accuracy, own.top1) == (right / 10, top / 10) and own.top1 <= 0.7
    assert own.logit_difference == pytest.approx(difference / 10, abs=1e-3)


# ---- names and vocabularies ------------------------------------------------------------------------


def test_single_token_names(storybook):
    assert names.single_token(storybook, ["Mary", "Zebedee", "John"]) == ["Mary", "John"]
    assert not names.known(storybook, "Mary and Zebedee") and names.known(storybook, "Mary and John")
    assert names.single_token(Pieces(4), ["Mary", "Alice", "Tom"]) == ["Mary", "Tom"]
    assert len(EVERYONE) == len(names.FEMALE) + len(names.MALE)


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
    assert len(published.places) == len(published.gifts) == 8
    assert {*published.names["selection"], *published.names["test"]} == {*names.PUBLISHED}
    assert not {*published.names["selection"]} & {*published.names["test"]}
    assert not {*published.templates["selection"]} & {*published.templates["test"]}


@pytest.mark.parametrize("corruption", Corruption)
def test_published_prompts_are_the_sentences_in_both_orders(published, corruption):
    """Every prompt is one of the split's sentences with its words filled in; either of the two gives, half and half."""
    pairs = published.pairs(Pieces(12), corruption, "test", 200, seed=0)
    shapes = {t: re.compile(re.sub(r"\\{(\w+)\\}", _group_for(), re.escape(t))) for t in published.templates["test"]}
    seen, baba = set(), 0
    for text, group in zip(pairs.texts, pairs.groups.tolist(), strict=True):
        (template,) = (t for t, shape in shapes.items() if shape.fullmatch(text))
        found = shapes[template].fullmatch(text).groupdict()
        assert found["S"] in (found["A"], found["B"]) and found["A"] != found["B"]
        assert {found["A"], found["B"]} <= {*published.names["test"]}
        baba += found["S"] == found["A"]
        seen.add((template, group))
    assert len(seen) == len(published.templates["test"]) == len({group for _, group in seen})  # one group a sentence
    assert baba == 100
    assert ((pairs.clean != pairs.corrupted).sum(1) == 1).all()


def _group_for():
    """A replacement that names each slot once and refers back to it afterwards."""

    def replacement(found: re.Match) -> str:
        name = found.group(1)
        again = name in found.string[: found.start()].replace("\\", "").replace("}", "{").split("{")
        return f"(?P={name})" if again else rf"(?P<{name}>\w+)"

    return replacement


def test_groups_are_the_sentences(storybook, pairs):
    """Prompts of one group are equal but for names, places and gifts; those of two groups are not."""
    shapes = {}
    for text, group in zip(pairs.texts, pairs.groups.tolist(), strict=True):
        shape = re.sub(r"\b(" + "|".join([*EVERYONE, *ioi.PLACES, *ioi.GIFTS]) + r")\b", "_", text)
        shapes.setdefault(group, set()).add(shape)
    assert all(len(own) == 1 for own in shapes.values())
    assert len({shape for own in shapes.values() for shape in own}) == len(shapes) == 5


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


def test_a_model_that_knows_no_template_is_told_a_word(storybook, monkeypatch):
    monkeypatch.setattr(ioi, "TEMPLATES", ("Quickly {A} and {B} went to the {place}. {S} gave a {gift} to",))
    with user_error("'Quickly'"):
        IOITask.of(storybook)


# ---- pronouns --------------------------------------------------------------------------------------


def test_pronoun_prompts_hold_what_they_say(storybook, prompts):
    for own in prompts.values():
        assert len(own) == N == len(own.texts) == len(set(own.texts))
        assert (own.she, own.he) == (id_of(storybook, "she"), id_of(storybook, "he"))
        for row, text in enumerate(own.texts):
            name = people(text)[0]
            assert people(text) == [name, name]
            assert bool(own.female[row]) == (name in names.FEMALE)
            assert own.tokens[row, : own.end[row] + 1].tolist() == [storybook.bos_id, *storybook.to_ids(text)]


def test_classes_are_balanced(prompts):
    for own in prompts.values():
        assert own.female.sum() == N // 2
        assert 0.3 < own.female[: N // 2].float().mean() < 0.7


def test_classes_are_balanced_also_when_more_is_asked_for_than_there_is(storybook, monkeypatch):
    """Once, a class with fewer names had fewer prompts."""
    groups = {"female": names.FEMALE[:8], "male": names.MALE[:12]}
    monkeypatch.setattr(pronouns, "_GROUPS", groups)
    own = pronoun_prompts(storybook, [Split.TEST], 10**4, seed=0)
    assert 0 < own.female.sum() == len(own) / 2 < 5000


def test_splits_share_no_names_and_the_test_no_templates(prompts):
    used = {split: {people(text)[0] for text in own.texts} for split, own in prompts.items()}
    assert not used[Split.TEST] & (used[Split.SELECTION] | used[Split.CHECK])
    assert not used[Split.SELECTION] & used[Split.CHECK]
    shapes = {split: {template(text) for text in own.texts} for split, own in prompts.items()}
    assert not shapes[Split.TEST] & (shapes[Split.SELECTION] | shapes[Split.CHECK])
    assert not shapes[Split.SELECTION] & shapes[Split.CHECK]
    assert all(len(shape) > 10 for shape in shapes.values())


def test_pronoun_ids_are_the_single_tokens_among_the_pronouns(storybook):
    found = pronoun_ids(storybook)
    assert found == sorted(set(found)) and {id_of(storybook, w) for w in ("she", "he", "her", "his", "him")} <= {*found}
    assert storybook.tokenizer.unk_token_id not in found
    pieces = Pieces(4)
    few = {pieces.to_ids(space + word)[0] for word in pronouns.PRONOUNS if len(word) <= 4 for space in ("", " ")}
    assert set(pronoun_ids(pieces)) == few


def test_a_model_that_cannot_do_pronouns_is_refused(storybook, monkeypatch):
    with user_error("'she'", "single token"):
        pronoun_prompts(Pieces(2), [Split.TEST], 8, seed=0)
    monkeypatch.setattr(pronouns, "_GROUPS", {"female": names.FEMALE, "male": ("John", "Tom", "Paul", "Zebedee")})
    with user_error("names"):
        pronoun_prompts(storybook, [Split.TEST], 8, seed=0)


def test_at_end_picks_each_rows_own_position():
    h = torch.arange(24.0).reshape(2, 4, 3)
    assert at_end(h, torch.tensor([3, 1])).tolist() == [[9, 10, 11], [15, 16, 17]]


@pytest.mark.parametrize("split", Split)
def test_possessives_are_the_same_names_with_other_sentences(storybook, split):
    """The transfer form: her or his is due, no pronoun stands in the prompt, the splits hold the same names."""
    own = pronoun_prompts(storybook, [split], 10**4, seed=0, form=Form.POSSESSIVE)
    subject = pronoun_prompts(storybook, [split], 10**4, seed=0)
    assert (own.she, own.he) == (id_of(storybook, "her"), id_of(storybook, "his"))
    assert {people(t)[0] for t in own.texts} == {people(t)[0] for t in subject.texts}
    assert not {template(t) for t in own.texts} & {template(t) for t in subject.texts}
    assert own.female.sum() * 2 == len(own)
    for text, sentence in zip(own.texts, own.sentence.tolist(), strict=True):
        assert not {*words(text)} & {*pronouns.PRONOUNS}
        assert text.endswith(". " + pronouns.POSSESSIVE_SENTENCES[sentence].format(N=people(text)[0]))


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("split", Split)
def test_storybook_predicts_every_form_and_the_other_name_undoes_it(storybook, form, split):
    prompts = pronoun_prompts(storybook, [split], N, seed=0, form=form)
    own, area = model_score(storybook, Contrast.of_pronouns(prompts))
    assert own.accuracy >= 0.99 and area >= 0.99 and own.top1 >= 0.9 and own.n == N
    pairs = pronoun_pairs(storybook, [split], N, seed=0, form=form)
    assert own_score(storybook, pairs).accuracy >= 0.99
    assert own_score(storybook, replace(pairs, clean=pairs.corrupted)).accuracy <= 0.01
    exchanged = torch.arange(N) % 4 < 2  # control: half of the prompts of each class
    answer, foil = pairs.answer.where(exchanged, pairs.foil), pairs.foil.where(exchanged, pairs.answer)
    assert own_score(storybook, replace(pairs, answer=answer, rival=foil)).accuracy == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("form", Form)
def test_pronoun_pairs_differ_in_the_name_alone(storybook, form):
    words_of = ("her", "his") if form is Form.POSSESSIVE else ("she", "he")
    pairs = pronoun_pairs(storybook, [Split.TEST], N, seed=0, form=form)
    she, he = (id_of(storybook, word) for word in words_of)
    assert len(pairs) == N and (pairs.answer == she).sum() == (pairs.answer == he).sum() == N // 2
    female, male = ({id_of(storybook, n) for n in group if names.known(storybook, n)} for group in _groups())
    for row in range(N):
        different = (pairs.clean[row] != pairs.corrupted[row]).nonzero()[:, 0]
        assert len(different) == 2
        (ours,), (theirs,) = ({*tokens[row, different].tolist()} for tokens in (pairs.clean, pairs.corrupted))
        assert (ours in female and theirs in male) if pairs.answer[row] == she else (ours in male and theirs in female)
        assert {int(pairs.answer[row]), int(pairs.foil[row])} == {she, he} and pairs.rival[row] == pairs.foil[row]


def _groups():
    return names.FEMALE, names.MALE


def test_names_of_several_tokens_are_paired_by_length():
    model = Pieces(4)  # "Mary" is one token, "Olivia" two; "she" and "he" are one
    pairs = pronoun_pairs(model, [Split.SELECTION, Split.CHECK, Split.TEST], 200, seed=0)
    lengths = {len(model.to_ids(f" {people(text)[0]}")) for text in pairs.texts}
    assert lengths == {1, 2} and len(pairs) == 200


# ---- pairs -----------------------------------------------------------------------------------------


def test_a_pair_that_does_not_fit_is_refused_by_its_word(storybook):
    def fits(*fields: str):
        return TextPair(*fields, fields[3], 0).ids(storybook)

    fits("Mary went to the", "John went to the", " park", " store")
    with user_error("'Zebedee'"):
        fits("Mary and Zebedee went to the", "John and Zebedee went to the", " park", " store")
    with user_error("'went'", "'Anna went'", "4", "5"):
        fits("Mary went to the", "Mary Anna went to the", " park", " store")
    with user_error("same"):
        fits("Mary went to the", "Mary went to the", " park", " store")
    with user_error("' big park'", "2 tokens", "one"):
        fits("Mary went to the", "John went to the", " big park", " store")
    with user_error("'Narnia'"):
        fits("Mary went to the", "John went to the", " park", " Narnia")
    with user_error("' park'", "different"):
        fits("Mary went to the", "John went to the", " park", " park")
    with user_error("not one prompt"):
        as_tokens(storybook, "empty", [], prepend_bos=True)
    with user_error(str(storybook.n_ctx)):
        long = " ".join(["ring"] * storybook.n_ctx)
        as_tokens(
            storybook, "long", [TextPair(f"Mary {long}", f"John {long}", " a", " the", " the", 0)], prepend_bos=True
        )


def test_by_default_every_prompt_is_its_own_group():
    tokens, one = torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, dtype=torch.long)
    assert PromptPairs("x", tokens, tokens, one, one, one, one).groups.tolist() == [0, 1, 2]


def test_the_own_score_comes_with_intervals(storybook, task):
    pairs = task.pairs(storybook, Corruption.IO, "test", N, seed=0)
    own = own_score(storybook, pairs)
    assert own.accuracy_interval == wilson_interval(N, N)  # all right: the bootstrap knows no doubt
    assert own.difference_interval[0] < own.logit_difference < own.difference_interval[1]
    assert "95% interval 94.3% to 100.0%" in own.sentence()
    assert "interval" not in OwnScore(accuracy=1.0, top1=1.0, logit_difference=1.0, n=1).sentence()


def test_an_interval_over_templates_is_the_wider_if_templates_differ():
    """Two templates of which the model does one: half of the prompts are right, and little is known."""
    logits = torch.zeros(40, 2)
    logits[:20, 0], logits[20:, 1] = 1.0, 1.0
    answer, wrong = torch.zeros(40, dtype=torch.long), torch.ones(40, dtype=torch.long)
    by_template = OwnScore.of(logits, answer, wrong, torch.arange(40) // 20)
    by_prompt = OwnScore.of(logits, answer, wrong, torch.arange(40))
    assert by_template.accuracy == by_prompt.accuracy == 0.5
    assert by_template.accuracy_interval == (0.0, 1.0)
    assert 0.3 < by_prompt.accuracy_interval[0] < 0.4 and 0.6 < by_prompt.accuracy_interval[1] < 0.7


@given(n=st.integers(1, 500), data=st.data())
def test_wilsons_interval_solves_its_equation(n, data):
    """Its ends are the shares p at distance 1.96 sqrt(p (1 - p) / n) from the one seen."""
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    for end in (low, high):
        assert abs(k / n - end) == pytest.approx(1.959964 * (end * (1 - end) / n) ** 0.5, abs=1e-6)
