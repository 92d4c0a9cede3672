"""Capabilities: transfer forms, and classes that are a concept or none."""

import json
from pathlib import Path

import torch
from tiny import user_error

from editing.removal.config import RemovalConfig
from editing.removal.prompts.capability import capability_of, of_pairs
from editing.tasks.pairs import PromptPairs

SMALL = RemovalConfig(selection_prompts=8, test_prompts=8)
PLACES = ("store", "park", "garden", "school", "market", "library")


def test_the_sources_transfer_form_is_tested_on(storybook, task):
    for prompts, word in zip(task.transfers.values(), ("her", "she"), strict=True):
        assert prompts.yes.unique().tolist() == storybook.to_ids(f" {word}")
    row, end = (getattr(task.transfers["“… went to the store, and”"], name)[0] for name in ("tokens", "end"))
    assert storybook.tokenizer.decode(row[end - 5 : end - 2]).split() == ["went", "to", "the"]
    assert sum("transfer to" in note and "AUROC 1.000" in note for note in task.notes) == 2


def test_too_few_pairs_are_refused(storybook):
    tokens = torch.ones(2, 3, dtype=torch.long)
    ones = torch.tensor([1, 1])
    pairs = PromptPairs("mine", tokens, tokens, ones, ones + 1, ones + 1, ones, torch.arange(2))
    with user_error("mine", "too few"):
        of_pairs(storybook, "mine", {"selection": pairs, "test": pairs}, n_selection=8)


def write_pairs(path: Path, labels: tuple[str | None, str | None], *, answers: int = 2) -> Path:
    """Two names before one pronoun or the other; every second pair about what they take."""
    lines = []
    for i, place in enumerate(PLACES * 2):
        turned = (i // 2) % 2 == 1
        she, he = ("Anna", "John") if i % 2 else ("Mary", "Tom")
        clean, corrupted = (f"{name} lived in London. {name} went to the {place}," for name in (she, he))
        right, wrong = ("she", "he") if i % 2 or answers == 1 else ("her", "his")
        line = [clean, corrupted, right, wrong] if not turned else [corrupted, clean, wrong, right]
        pair = dict(zip(("clean", "corrupted", "answer", "foil"), line, strict=True)) | {"template": place}
        label = labels[int(turned)]
        lines.append(pair if label is None else pair | {"label": label})
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_one_pair_of_answers_is_a_concept_and_several_need_labels(storybook, tmp_path):
    single = capability_of(write_pairs(tmp_path / "single.jsonl", (None, None), answers=1), storybook, SMALL)
    assert single.concept and len(single.notes) == 1
    several = capability_of(write_pairs(tmp_path / "several.jsonl", (None, None)), storybook, SMALL)
    assert not several.concept and "2 pairs of answers" in several.notes[1]
    labelled = capability_of(write_pairs(tmp_path / "labelled.jsonl", ("female", "male")), storybook, SMALL)
    female = {*storybook.to_ids(" she her")}
    for prompts in (labelled.test, labelled.fitting, labelled.check, labelled.choosing):
        assert {*prompts.yes.tolist()} <= female and not {*prompts.no.tolist()} & female
        names = [storybook.token_text(int(row[1])).strip() for row in prompts.tokens]
        assert [name in ("Anna", "Mary") for name in names] == prompts.positive.tolist()
    assert labelled.concept and labelled.answers[0] in ("she", "her")


def test_labels_that_do_not_fit_are_refused(storybook, tmp_path):
    for labels in (("female", None), ("female", "female")):
        with user_error("label", "two different ones"):
            capability_of(write_pairs(tmp_path / "pairs.jsonl", labels), storybook, SMALL)
    path = write_pairs(tmp_path / "pairs.jsonl", ("a", "b"))
    first, *rest = path.read_text().split("\n")
    path.write_text("\n".join([first, first.replace('"a"', '"b"').replace("Tom", "Paul"), *rest]))
    with user_error("one class"):
        capability_of(path, storybook, SMALL)
