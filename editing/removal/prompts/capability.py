"""Capabilities that can be removed: prompts to choose by, to fit on and to test on, in a model's words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from editing.removal.config import RemovalConfig
from editing.removal.prompts.class_scores import model_score
from editing.removal.prompts.two_class_prompts import TwoClassPrompts, together
from editing.tasks.pairs import PromptPairs
from editing.tasks.pronouns import Form, PronounPrompts, Split, pronoun_ids, pronoun_prompts
from editing.tasks.task import task_of
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel

EVERYTHING = 10**6
"""More prompts than any task has."""
ABLE = 0.75
"""AUROC that the unedited model must have on a transfer task for a removal to show there."""
NO_TRANSFER = "there is no transfer task for this one"
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
    selection: TwoClassPrompts
    """To choose features and strengths."""
    check: TwoClassPrompts
    """To compare choices: other names or templates than `selection`."""
    choosing: TwoClassPrompts
    """Both together."""
    tuning: TwoClassPrompts
    """All selection prompts: erasers fitted on them are tuned on `check`."""
    fitting: TwoClassPrompts
    """All prompts but the test's: what erasers are fitted on."""
    test: TwoClassPrompts
    """For the reported figures, those of probes included."""
    task_tokens: tuple[int, ...]
    """Damage is measured where the model does not expect these."""
    transfers: Mapping[str, TwoClassPrompts] = field(default_factory=dict)
    """Test prompts for the same concept in other forms, of those that the model can do."""
    notes: tuple[str, ...] = ()
    """The transfer tasks with the model's own score, and what is left out, in words."""
    concept: bool = True
    """Whether one concept tells the classes apart whatever the answers are; otherwise nothing is erased or probed."""


def capability_of(
    name: str | Path, model: LanguageModel, config: RemovalConfig, *, most: int = EVERYTHING
) -> Capability:
    """The capability behind the task of that name, or behind the pairs in a file (`editing.tasks.task`).

    In a file each line may have a `label`, the class of its clean prompt, of which the corrupted one has the other.
    Erasers are fitted on at most `most` prompts of a split. Raises `UserError` where there is no such task, or the
    model does not have the words.
    """
    if name == "pronouns":
        return pronouns(model, Form.SUBJECT, config, most)
    if name == "possessives":
        return pronouns(model, Form.POSSESSIVE, config, most)
    task = task_of(name, model)
    common = {"seed": config.seed, "prepend_bos": config.prepend_bos}
    pairs = {split: task.pairs(split, most, **common) for split in task.splits if split != "test"}
    pairs["test"] = task.pairs("test", max(1, config.test_prompts // 2), **common)
    return of_pairs(model, task.name, pairs, n_selection=config.selection_prompts, labels=task.labels())


# ---- pronouns --------------------------------------------------------------------------------------


def pronouns(model: LanguageModel, form: Form, config: RemovalConfig, most: int = EVERYTHING) -> Capability:
    """One pronoun or the other after a name; raises `UserError` where the model does not have the words."""

    def prompts(splits: Sequence[Split], n: int) -> TwoClassPrompts:
        return TwoClassPrompts.of_pronouns(_pronoun_prompts(model, splits, n, config, form))

    others, subject = [Split.SELECTION, Split.CHECK], form is Form.SUBJECT
    test = _pronoun_prompts(model, [Split.TEST], config.test_prompts, config, form)
    transfers, notes = _transfers(model, config) if subject else ({}, [NO_TRANSFER])
    return Capability(
        name="pronouns" if subject else "possessives",
        answers=("she", "he") if subject else ("her", "his"),
        example=test.texts[0],
        selection=prompts([Split.SELECTION], config.selection_prompts),
        check=prompts([Split.CHECK], config.selection_prompts),
        choosing=prompts(others, 2 * config.selection_prompts),
        tuning=prompts([Split.SELECTION], most),
        fitting=prompts(others, most),
        test=TwoClassPrompts.of_pronouns(test),
        task_tokens=tuple(pronoun_ids(model)),
        transfers=transfers,
        notes=tuple(notes),
    )


def _pronoun_prompts(
    model: LanguageModel, splits: Sequence[Split], n: int, config: RemovalConfig, form: Form
) -> PronounPrompts:
    return pronoun_prompts(model, splits, n, seed=config.seed, prepend_bos=config.prepend_bos, form=form)


def _transfers(model: LanguageModel, config: RemovalConfig) -> tuple[dict[str, TwoClassPrompts], list[str]]:
    """Other forms of the pronoun task that the model can do, and a note on each form."""
    transfers, notes = {}, []
    for words, form in (("her or his", Form.POSSESSIVE), ("“… went to the store, and”", Form.STORE)):
        try:
            test = _pronoun_prompts(model, [Split.TEST], max(2, config.test_prompts // 2), config, form)
        except UserError as error:
            notes.append(f"transfer to {words}: not measured; {error}")
            continue
        prompts = TwoClassPrompts.of_pronouns(test)
        score, area = model_score(model, prompts)
        notes.append(f"transfer to {words}: {score.sentence()}; AUROC {area:.3f}")
        # not by accuracy, which a model has that always gives the same answer
        if area >= ABLE:
            transfers[words] = prompts
        else:
            notes[-1] += "; too little to measure a removal by"
    return transfers, notes


# ---- pairs of prompts ------------------------------------------------------------------------------


def of_pairs(
    model: LanguageModel,
    name: str,
    pairs: Mapping[str, PromptPairs],
    *,
    n_selection: int,
    labels: Mapping[str, str] | None = None,
) -> Capability:
    """Telling clean from corrupted prompts apart by their answers.

    `pairs` are those of the splits `selection`, `test` and, where there is one, `check`; `labels` give the class of
    each clean prompt, by its text. Raises `UserError` for fewer than four pairs to select on or two to test.
    """
    selection, test = pairs["selection"], pairs["test"]
    if len(selection) < 4 or len(test) < 2:
        raise UserError(f"{name}: {len(selection)} pairs to choose on and {len(test)} to test are too few (4 and 2)")
    splits = {name: TwoClassPrompts.of_pairs(split, _positive(split, labels)) for name, split in pairs.items()}
    chosen = splits["selection"]
    halves = (chosen, splits["check"]) if "check" in splits else _dealt_out(chosen)
    fitting, tested = together(halves), splits["test"]
    rows = torch.cat([torch.stack([prompts.yes, prompts.no], 1) for prompts in (fitting, tested)])
    answers = {frozenset(row) for row in rows.tolist()}
    concept, notes = bool(labels) or len(answers) == 1, [NO_TRANSFER]
    if not concept:
        notes.append(NO_CONCEPT.format(n=len(answers)))
    return Capability(
        name=name,
        answers=(model.token_text(int(tested.yes[0])).strip(), model.token_text(int(tested.no[0])).strip()),
        example=test.texts[0] if test.texts else "",
        selection=halves[0].first(n_selection),
        check=halves[1].first(n_selection),
        choosing=together([half.first(n_selection) for half in halves]),
        tuning=halves[0],
        fitting=fitting,
        test=tested,
        task_tokens=tuple(sorted(frozenset().union(*answers))),
        notes=tuple(notes),
        concept=concept,
    )


def _dealt_out(prompts: TwoClassPrompts) -> tuple[TwoClassPrompts, TwoClassPrompts]:
    """Every second template, and the others; where there is only one template, every second pair, and the others."""
    several = len(prompts.template.unique()) > 1
    label = prompts.template if several else torch.arange(len(prompts)) // 2
    half = label.unique(return_inverse=True)[1] % 2
    return prompts.rows((half == 0).nonzero()[:, 0]), prompts.rows((half == 1).nonzero()[:, 0])


def _positive(pairs: PromptPairs, labels: Mapping[str, str] | None) -> Bool[Tensor, "pairs"] | None:
    """The clean prompts whose label is the first of the two in the alphabet; None without labels."""
    if not labels:
        return None
    first = min(labels.values())
    return torch.tensor([labels[text] == first for text in pairs.texts])
