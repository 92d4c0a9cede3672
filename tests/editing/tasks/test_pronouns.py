"""`editing/tasks/pronouns.py`: names alone tell which pronoun is due, and storybook knows it."""

from dataclasses import replace

import pytest
import torch
from pieces import Pieces
from prompt_texts import id_of, people, template, words
from tiny import user_error

from editing.removal.prompts.class_scores import model_score
from editing.removal.prompts.two_class_prompts import TwoClassPrompts
from editing.tasks import names, pronouns
from editing.tasks.pronouns import Form, PronounPrompts, Split, pronoun_ids, pronoun_pairs, pronoun_prompts
from editing.tasks.score import task_score

N = 64


@pytest.fixture(scope="module")
def prompts(storybook) -> dict[Split, PronounPrompts]:
    return {split: pronoun_prompts(storybook, [split], N, seed=0) for split in Split}


def test_pronoun_prompts_hold_what_they_say(storybook, prompts):
    for drawn in prompts.values():
        assert len(drawn) == N == len(drawn.texts) == len(set(drawn.texts))
        assert (drawn.she, drawn.he) == (id_of(storybook, "she"), id_of(storybook, "he"))
        for row, text in enumerate(drawn.texts):
            name = people(text)[0]
            assert people(text) == [name, name]
            assert bool(drawn.female[row]) == (name in names.FEMALE)
            assert drawn.tokens[row, : drawn.end[row] + 1].tolist() == [storybook.bos_id, *storybook.to_ids(text)]


def test_no_word_is_unknown_and_the_seed_decides(storybook, prompts):
    for part in prompts.values():
        assert not (part.tokens == storybook.tokenizer.unk_token_id).any()
    first, same, other = (pronoun_prompts(storybook, [Split.TEST], 16, seed=seed).texts for seed in (0, 0, 1))
    assert first == same != other


def test_classes_are_balanced(prompts):
    for drawn in prompts.values():
        assert drawn.female.sum() == N // 2
        assert 0.3 < drawn.female[: N // 2].float().mean() < 0.7


def test_classes_are_balanced_also_when_more_is_asked_for_than_there_is(storybook, monkeypatch):
    """Once, a class with fewer names had fewer prompts."""
    groups = {"female": names.FEMALE[:8], "male": names.MALE[:12]}
    monkeypatch.setattr(pronouns, "_GROUPS", groups)
    drawn = pronoun_prompts(storybook, [Split.TEST], 10**4, seed=0)
    assert 0 < drawn.female.sum() == len(drawn) / 2 < 5000


def test_splits_share_no_names_and_the_test_no_templates(prompts):
    used = {split: {people(text)[0] for text in drawn.texts} for split, drawn in prompts.items()}
    assert not used[Split.TEST] & (used[Split.SELECTION] | used[Split.CHECK])
    assert not used[Split.SELECTION] & used[Split.CHECK]
    shapes = {split: {template(text) for text in drawn.texts} for split, drawn in prompts.items()}
    assert not shapes[Split.TEST] & (shapes[Split.SELECTION] | shapes[Split.CHECK])
    assert not shapes[Split.SELECTION] & shapes[Split.CHECK]
    assert all(len(shape) > 10 for shape in shapes.values())


def test_pronoun_ids_are_the_single_tokens_among_the_pronouns(storybook):
    ids = pronoun_ids(storybook)
    assert ids == sorted(set(ids)) and {id_of(storybook, w) for w in ("she", "he", "her", "his", "him")} <= {*ids}
    assert storybook.tokenizer.unk_token_id not in ids
    pieces = Pieces(4)
    few = {pieces.to_ids(space + word)[0] for word in pronouns.PRONOUNS if len(word) <= 4 for space in ("", " ")}
    assert set(pronoun_ids(pieces)) == few


def test_a_model_that_cannot_do_pronouns_is_refused(storybook, monkeypatch):
    with user_error("'she'", "single token"):
        pronoun_prompts(Pieces(2), [Split.TEST], 8, seed=0)
    monkeypatch.setattr(pronouns, "_GROUPS", {"female": names.FEMALE, "male": ("John", "Tom", "Paul", "Zebedee")})
    with user_error("names"):
        pronoun_prompts(storybook, [Split.TEST], 8, seed=0)


@pytest.mark.parametrize("split", Split)
def test_possessives_are_the_same_names_with_other_sentences(storybook, split):
    """The transfer form: her or his is due, no pronoun stands in the prompt, the splits hold the same names."""
    drawn = pronoun_prompts(storybook, [split], 10**4, seed=0, form=Form.POSSESSIVE)
    subject = pronoun_prompts(storybook, [split], 10**4, seed=0)
    assert (drawn.she, drawn.he) == (id_of(storybook, "her"), id_of(storybook, "his"))
    assert {people(t)[0] for t in drawn.texts} == {people(t)[0] for t in subject.texts}
    assert not {template(t) for t in drawn.texts} & {template(t) for t in subject.texts}
    assert drawn.female.sum() * 2 == len(drawn)
    for text, sentence in zip(drawn.texts, drawn.sentence.tolist(), strict=True):
        assert not {*words(text)} & {*pronouns.PRONOUNS}
        assert text.endswith(". " + pronouns.POSSESSIVE_SENTENCES[sentence].format(N=people(text)[0]))


@pytest.mark.slow
@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("split", Split)
def test_storybook_predicts_every_form_and_the_other_name_undoes_it(storybook, form, split):
    prompts = pronoun_prompts(storybook, [split], N, seed=0, form=form)
    score, area = model_score(storybook, TwoClassPrompts.of_pronouns(prompts))
    assert score.accuracy.value >= 0.99 and area >= 0.99 and score.top1 >= 0.9 and score.n == N
    pairs = pronoun_pairs(storybook, [split], N, seed=0, form=form)
    assert task_score(storybook, pairs).accuracy.value >= 0.99
    assert task_score(storybook, replace(pairs, clean=pairs.corrupted)).accuracy.value <= 0.01
    exchanged = torch.arange(N) % 4 < 2  # control: half of the prompts of each class
    answer, foil = pairs.answer.where(exchanged, pairs.foil), pairs.foil.where(exchanged, pairs.answer)
    assert task_score(storybook, replace(pairs, answer=answer, rival=foil)).accuracy.value == pytest.approx(
        0.5, abs=0.02
    )


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
        (name,), (other,) = ({*tokens[row, different].tolist()} for tokens in (pairs.clean, pairs.corrupted))
        assert (name in female and other in male) if pairs.answer[row] == she else (name in male and other in female)
        assert {int(pairs.answer[row]), int(pairs.foil[row])} == {she, he} and pairs.rival[row] == pairs.foil[row]


def _groups():
    return names.FEMALE, names.MALE


def test_names_of_several_tokens_are_paired_by_length():
    model = Pieces(4)  # "Mary" is one token, "Olivia" two; "she" and "he" are one
    pairs = pronoun_pairs(model, [Split.SELECTION, Split.CHECK, Split.TEST], 200, seed=0)
    lengths = {len(model.to_ids(f" {people(text)[0]}")) for text in pairs.texts}
    assert lengths == {1, 2} and len(pairs) == 200
