"""Text while features are steered: silent features do nothing, the same seed writes the same text."""

import json
from dataclasses import replace

import pytest
import torch
from handmade import Zero, random_topk
from tiny import random_tokens

from editing.interventions.edit_size import MeasuredEdit
from editing.interventions.masks import Onward
from editing.steering.continuations import Continuation, Writing, changed_tokens, continuations, example_prompts
from editing.steering.edits import Mode, Steering
from editing.steering.feature_text import read_features
from sae_core.codec import from_plain, to_plain
from sae_core.model.generation import Sampling, generate
from sae_core.sites import FeatureId, Site

SITE = Site(0)


def test_a_silent_feature_leaves_generated_text_alone(tiny):
    rows, site = [random_tokens(tiny.n_vocab, n, seed=n).tolist() for n in (6, 3)], Site(1)
    dictionaries = {site: Zero(tiny.d_model)}
    text = read_features(tiny, dictionaries, [FeatureId(site, 0)], torch.tensor(rows[:1]))
    text = replace(text, f=text.f + 30.0)  # as if it had been active elsewhere
    for mode, strength, same in ((Mode.OFF, 0.0, True), (Mode.SCALE, 9.0, True), (Mode.CLAMP, 1.0, False)):
        texts = continuations(tiny, Steering(dictionaries, text, mode), [strength], rows, Writing(12))
        assert [text.strength for text in texts] == [None, strength] * 2
        for plain, edited in (texts[:2], texts[2:]):
            assert (plain.tokens == edited.tokens) is same and any(edited.changed) is not same


def test_every_new_token_is_edited_and_bos_is_not(storybook):
    site = Site(2)
    dictionaries = {site: random_topk(storybook.d_model)}
    prompt = [0, *storybook.to_ids("Mary went to the")]
    text = read_features(storybook, dictionaries, [FeatureId(site, 3)], torch.tensor([prompt]))
    mask = Onward(storybook.content(torch.tensor([prompt])))
    (edit,) = Steering(dictionaries, replace(text, f=text.f + 1), Mode.CLAMP).edits(5.0, mask)
    measured = MeasuredEdit(edit)
    with storybook.hooks(measured):
        (new,) = generate(storybook, [prompt], 6, seed=0, sampling=Sampling(temperature=0.0))
    first, *later = measured.moved
    assert first[0, 0] == 0 and (first[0, 1:] > 0).all()
    assert len(later) >= len(new) - 1 and all((step > 0).all() for step in later)


@pytest.mark.slow
def test_the_same_seed_writes_the_same_text(storybook):
    site, feature = Site(2), FeatureId(Site(2), 3)
    dictionaries = {site: random_topk(storybook.d_model)}
    prompt = [0, *storybook.to_ids("Mary went to the")]
    text = read_features(storybook, dictionaries, [feature], random_tokens(storybook.n_vocab, 8, 20))
    steering = Steering(dictionaries, replace(text, f=text.f + 1), Mode.SCALE)
    first, same, other = (
        continuations(storybook, steering, [1.0, 4.0], [prompt], Writing(15, seed)) for seed in (0, 0, 1)
    )
    assert first == same != other
    assert first[0].tokens == first[1].tokens and not any(first[1].changed)  # scaling by one is no edit
    assert first[0].prompt == "Mary went to the" and all(text.marked() for text in first)
    plain = json.loads(json.dumps(to_plain(first)))
    assert [from_plain(Continuation, text) for text in plain] == first


def test_changed_tokens_are_those_that_no_alignment_keeps():
    assert changed_tokens([1, 2, 3, 4], [1, 2, 3, 4]) == (False,) * 4
    assert changed_tokens([1, 2, 3, 4], [1, 9, 2, 3, 4]) == (False, True, False, False, False)
    assert changed_tokens([1, 2, 3, 4, 5, 6], [1, 9, 5, 6]) == (False, True, True, True)  # two by chance
    assert changed_tokens([1, 2, 3], [7, 8]) == (True, True) and changed_tokens([1], []) == ()


def test_example_prompts_end_where_the_feature_peaks_or_begin_where_it_is_silent(toy):
    peak, silent = (example_prompts(toy.model, toy.text, mode) for mode in (Mode.SCALE, Mode.CLAMP))
    along = toy.model.embedding @ toy.dictionaries[SITE].directions[0]
    assert along[peak[0][-1]] == toy.text.maximum[0] and all(row[0] == 0 and row.count(0) == 1 for row in peak)
    assert len(peak) == len(silent) == 2
