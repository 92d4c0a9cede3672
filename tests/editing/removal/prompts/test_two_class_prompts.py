"""Prompts of two classes: where they come from, and how they are split."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from two_classes import two_classes

from editing.removal.prompts.two_class_prompts import TwoClassPrompts, together
from editing.tasks.pairs import PromptPairs
from editing.tasks.pronouns import Split, pronoun_prompts


def units(labels: torch.Tensor, kept: torch.Tensor) -> set[int]:
    return {*labels[kept].tolist()}


def test_halves_share_no_name_and_are_balanced(storybook):
    prompts = TwoClassPrompts.of_pronouns(pronoun_prompts(storybook, [Split.TEST], 128, seed=0))
    half = prompts.halves()
    assert not units(prompts.name, half) & units(prompts.name, ~half)
    assert units(prompts.template, half) & units(prompts.template, ~half)
    for kept in (half, ~half):
        classes = [len(units(prompts.name, kept & (prompts.positive == sign))) for sign in (True, False)]
        assert min(classes) >= 9 and 0.3 < kept.double().mean() < 0.7


def test_without_names_halves_share_no_template_and_of_one_template_no_pair():
    positive, template = torch.arange(64) % 2 == 0, torch.arange(64) // 8
    half = two_classes(positive, template).halves()
    assert not units(template, half) & units(template, ~half) and half.sum() == 32
    half = two_classes(positive, torch.zeros_like(template)).halves()
    assert torch.equal(half[::2], half[1::2]) and half.sum() == 32
    assert two_classes(positive[:8], template[:8]).halves() is None  # two of each class to a half


def pairs_of(answer: Sequence[int], foil: Sequence[int]) -> PromptPairs:
    tokens = torch.arange(3 * len(answer)).view(-1, 3)
    answers, foils = torch.tensor(answer), torch.tensor(foil)
    groups = torch.arange(len(answer))
    return PromptPairs("x", tokens, tokens + 100, answers, foils, foils, torch.full_like(answers, 2), groups=groups)


def test_the_answer_of_the_smaller_id_is_positive():
    """The same in every split: once it was the answer of the first pair, which another split may begin otherwise."""
    prompts = TwoClassPrompts.of_pairs(pairs_of([5, 6, 5, 7], [6, 5, 6, 8]))
    assert prompts.positive.tolist() == [True, False, False, True, True, False, True, False]
    assert prompts.yes.tolist() == [5, 5, 5, 5, 5, 5, 7, 7] and prompts.no.tolist() == [6, 6, 6, 6, 6, 6, 8, 8]
    assert prompts.tokens[2].tolist() == [3, 4, 5] and prompts.tokens[3].tolist() == [103, 104, 105]
    turned = TwoClassPrompts.of_pairs(pairs_of([6, 5], [5, 6]))
    assert turned.yes.tolist() == [5] * 4 and turned.positive.tolist() == [False, True, True, False]


def test_classes_can_be_given():
    prompts = TwoClassPrompts.of_pairs(pairs_of([5, 6, 7], [6, 5, 8]), torch.tensor([True, False, False]))
    assert prompts.positive.tolist() == [True, False, False, True, False, True]
    assert prompts.yes.tolist() == [5, 5, 5, 5, 8, 8] and prompts.no.tolist() == [6, 6, 6, 6, 7, 7]


def test_sets_of_prompts_are_mixed_as_they_are_long():
    long = TwoClassPrompts.of_pairs(pairs_of([5] * 4, [6] * 4))
    short = TwoClassPrompts.of_pairs(pairs_of([7, 7], [8, 8])).rows(slice(0, 2))
    both = together([long, replace(short, tokens=short.tokens[:, :2], concept=short.concept[:, :2])])
    assert len(both) == 10 and both.yes[:5].tolist().count(7) == 1 and both.name is None
    assert torch.equal(both.tokens[both.yes == 7][:, 1:], short.tokens[:, 1:2].expand(-1, 2))
