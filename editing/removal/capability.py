"""Capabilities that can be removed: prompts for choosing, fitting and testing, and what counts as elsewhere."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from editing.removal.two_class_prompts import Contrast, model_score, together
from editing.tasks.pairs import PromptPairs
from editing.tasks.pronouns import Form, PronounPrompts, Split, pronoun_ids, pronoun_prompts
from editing.tasks.task import TASKS, task_of
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel

EVERYTHING = 10**6  # more prompts than any task has
ABLE = 0.75
"""AUROC that the unedited model must have on a transfer task for a removal to show there."""
NO_CONCEPT = (
    "the prompts have {n} pairs of answers, and nothing says which answers belong together: the classes are no concept "
    "that could be erased or read, so erasers, probes and the comparison with LEACE are left out"
)


@dataclass(frozen=True, eq=False)
class Capability:
    """One task in a model's words."""

    name: str
    answers: tuple[str, str]
    """The right answers of the two classes, the positive one first, as text."""
    example: str
    selection: Contrast
    """To choose features and strengths."""
    check: Contrast
    """To compare choices: other names or templates than `selection`."""
    choosing: Contrast
    """Both together, as many as asked for."""
    tuning: Contrast
    """All prompts there are for selection: erasers fitted on them are tuned on `check`, which they have not seen."""
    fitting: Contrast
    """All prompts there are that are not for the test: what erasers are fitted on."""
    test: Contrast
    """For the reported figures, the probes' as well."""
    due: tuple[int, ...]
    """Tokens of the task: damage is measured where the model does not expect them."""
    transfers: Mapping[str, Contrast] = field(default_factory=dict)
    """Test prompts for the same concept in other forms, as far as the model can do them."""
    notes: tuple[str, ...] = ()
    """What the transfer tasks are and the model's own score there, and what is left out, in words."""
    concept: bool = True
    """Whether the positive prompts have something in common whatever their answers are."""


def capability_of(
    name: str | Path, model: LanguageModel, *, n_selection: int, n_test: int, seed: int, prepend_bos: bool = True
) -> Capability:
    """The capability behind the task of that name, or behind the pairs in a file (`editing.tasks.task`).

    In a file each line may have a `label`, the class of its clean prompt, of which the corrupted one has the other.
    Raises `UserError` where there is no such task, or the model does not have the words.
    """
    size = {"n_selection": n_selection, "n_test": n_test, "seed": seed, "prepend_bos": prepend_bos}
    if name == "pronouns":
        return pronouns(model, Form.SUBJECT, **size)
    if name == "possessives":
        return pronouns(model, Form.POSSESSIVE, **size)
    found = task_of(name, model)
    pairs = {split: found.pairs(split, EVERYTHING, seed=seed, prepend_bos=prepend_bos) for split in found.splits}
    test = found.pairs("test", max(1, n_test // 2), seed=seed, prepend_bos=prepend_bos)
    labels = {} if name in TASKS else read_labels(Path(name).expanduser())
    return of_pairs(
        model, found.name, pairs["selection"], test, check=pairs.get("check"), n_selection=n_selection, labels=labels
    )


# ---- pronouns --------------------------------------------------------------------------------------


def pronouns(
    model: LanguageModel, form: Form, *, n_selection: int, n_test: int, seed: int, prepend_bos: bool = True
) -> Capability:
    """One pronoun or the other after a name; raises `UserError` where the model does not have the words."""

    def prompts(splits: Sequence[Split], n: int, form: Form = form) -> PronounPrompts:
        return pronoun_prompts(model, splits, n, seed=seed, prepend_bos=prepend_bos, form=form)

    others, subject = [Split.SELECTION, Split.CHECK], form is Form.SUBJECT
    test, transfers, notes = prompts([Split.TEST], n_test), {}, ["there is no transfer task for this one"]
    if subject:
        notes = []
        for words, other in (("her or his", Form.POSSESSIVE), ("“… went to the store, and”", Form.STORE)):
            try:
                contrast = Contrast.of_pronouns(prompts([Split.TEST], max(2, n_test // 2), other))
            except UserError as error:
                notes.append(f"transfer to {words}: not measured; {error}")
                continue
            own, area = model_score(model, contrast)
            notes.append(f"transfer to {words}: {own.sentence()}; AUROC {area:.3f}")
            # accuracy alone could be that of a model which always answers the same
            if area >= ABLE:
                transfers[words] = contrast
            else:
                notes[-1] += "; too little to measure a removal by"
    return Capability(
        name="pronouns" if subject else "possessives",
        answers=("she", "he") if subject else ("her", "his"),
        example=test.texts[0],
        selection=Contrast.of_pronouns(prompts([Split.SELECTION], n_selection)),
        check=Contrast.of_pronouns(prompts([Split.CHECK], n_selection)),
        choosing=Contrast.of_pronouns(prompts(others, 2 * n_selection)),
        tuning=Contrast.of_pronouns(prompts([Split.SELECTION], EVERYTHING)),
        fitting=Contrast.of_pronouns(prompts(others, EVERYTHING)),
        test=Contrast.of_pronouns(test),
        due=tuple(pronoun_ids(model)),
        transfers=transfers,
        notes=tuple(notes),
    )


# ---- pairs of prompts ------------------------------------------------------------------------------


def of_pairs(
    model: LanguageModel,
    name: str,
    selection: PromptPairs,
    test: PromptPairs,
    *,
    n_selection: int,
    check: PromptPairs | None = None,
    labels: Mapping[str, str] | None = None,
) -> Capability:
    """Telling clean from corrupted prompts apart by their answers.

    `labels` give the class of each clean prompt, by its text. Without pairs to check the choice on, every second of
    the selection's templates does it; where there is only one, every second pair.
    Raises `UserError` for fewer than four pairs to select on.
    """
    if len(selection) < 4 or len(test) < 2:
        raise UserError(f"{name}: {len(selection)} pairs to choose on and {len(test)} to test are too few (4 and 2)")
    tested, chosen = (Contrast.of_pairs(pairs, _positive(pairs, labels)) for pairs in (test, selection))
    if check is None:
        several = len(chosen.template.unique()) > 1
        label = chosen.template if several else torch.arange(len(chosen)) // 2
        turn = label.unique(return_inverse=True)[1] % 2
        halves = [chosen.rows((turn == half).nonzero()[:, 0]) for half in (0, 1)]
    else:
        halves = [chosen, Contrast.of_pairs(check, _positive(check, labels))]
    whole = together(halves)
    text = [model.token_text(int(ids[0])).strip() for ids in (tested.yes, tested.no)]
    answers = {frozenset(both) for one in (whole, tested) for both in torch.stack([one.yes, one.no], 1).tolist()}
    concept, notes = bool(labels) or len(answers) == 1, ["there is no transfer task for this one"]
    if not concept:
        notes.append(NO_CONCEPT.format(n=len(answers)))
    return Capability(
        name=name,
        answers=(text[0], text[1]),
        example=test.texts[0] if test.texts else "",
        selection=halves[0].first(n_selection),
        check=halves[1].first(n_selection),
        choosing=together([half.first(n_selection) for half in halves]),
        tuning=halves[0],
        fitting=whole,
        test=tested,
        due=tuple(sorted(frozenset().union(*answers))),
        notes=tuple(notes),
        concept=concept,
    )


def _positive(pairs: PromptPairs, labels: Mapping[str, str] | None) -> Bool[Tensor, "pairs"] | None:
    """The clean prompts whose label is the first of the two in the alphabet; None without labels."""
    if not labels:
        return None
    return torch.tensor([labels[text] == min(labels.values()) for text in pairs.texts])


def read_labels(path: Path) -> dict[str, str]:
    """The `label` of every clean prompt in a file of pairs, by its text; empty if none has one.

    Raises `UserError` unless all lines have one, the same for the same prompt, and there are two in all.
    """
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    labels: dict[str, str] = {}
    for line in lines:
        clean, label = line.get("clean_prefix") or line.get("clean"), line.get("label")
        if label is not None and labels.setdefault(clean, str(label)) != str(label):
            raise UserError(f"{path}: {clean!r} has the labels {labels[clean]} and {label}; a prompt is of one class")
    without = sum(line.get("label") is None for line in lines)
    if labels and (without or len({*labels.values()}) != 2):
        seen = ", ".join(sorted({*labels.values()}))
        raise UserError(
            f'{path}: give every line a "label" or none, two different ones in all; {without} of {len(lines)} lines '
            f"have none, the others {seen}"
        )
    return labels
