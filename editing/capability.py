"""Capabilities that can be removed: prompts for choosing, fitting and testing, and what counts as elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from editing.contrast import Contrast, own_score, together
from editing.tasks.pairs import OwnScore, PromptPairs
from editing.tasks.pronouns import Form, PronounPrompts, Split, pronoun_ids, pronoun_prompts
from editing.tasks.task import task
from sae_core.errors import UserError
from sae_core.models import LanguageModel

EVERYTHING = 10**6  # more prompts than any task has


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
    """All prompts there are that are not for the test: what erasers and probes are fitted on."""
    test: Contrast
    due: tuple[int, ...]
    """Tokens of the task: damage is measured where the model does not expect them."""
    transfer: Contrast | None = None
    """Test prompts for the same concept in another form; None where there are none, or the model cannot do them."""
    transfer_note: str = ""
    """What the transfer task is, and the model's own score there, in words."""


def capability(
    name: str | Path, model: LanguageModel, *, n_selection: int, n_test: int, seed: int, prepend_bos: bool = True
) -> Capability:
    """The capability behind the task of that name, or behind the pairs in a file (`editing.tasks.task`).

    Raises `UserError` where there is no such task, or the model does not have the words.
    """
    size = {"n_selection": n_selection, "n_test": n_test, "seed": seed, "prepend_bos": prepend_bos}
    if name == "pronouns":
        return pronouns(model, Form.SUBJECT, **size)
    if name == "possessives":
        return pronouns(model, Form.POSSESSIVE, **size)
    found = task(name, model)
    pairs = {split: found.pairs(split, EVERYTHING, seed=seed, prepend_bos=prepend_bos) for split in found.splits}
    test = found.pairs("test", max(1, n_test // 2), seed=seed, prepend_bos=prepend_bos)
    return of_pairs(model, found.name, pairs["selection"], test, check=pairs.get("check"), n_selection=n_selection)


def pronouns(
    model: LanguageModel, form: Form, *, n_selection: int, n_test: int, seed: int, prepend_bos: bool = True
) -> Capability:
    """One pronoun or the other after a name; raises `UserError` where the model does not have the words."""

    def prompts(splits: Sequence[Split], n: int, form: Form = form) -> PronounPrompts:
        return pronoun_prompts(model, splits, n, seed=seed, prepend_bos=prepend_bos, form=form)

    others = [Split.SELECTION, Split.CHECK]
    test = prompts([Split.TEST], n_test)
    transfer, note = None, "there is no transfer task for this one"
    if form is Form.SUBJECT:
        transfer, note = _possessives(model, lambda: prompts([Split.TEST], max(2, n_test // 2), Form.POSSESSIVE))
    subject = form is Form.SUBJECT
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
        transfer=transfer,
        transfer_note=note,
    )


def _possessives(model: LanguageModel, prompts: Callable[[], PronounPrompts]) -> tuple[Contrast | None, str]:
    """The transfer task, her or his, where the model can do it; and what it is worth there, in words."""
    try:
        contrast = Contrast.of_pronouns(prompts())
    except UserError as error:
        return None, f"transfer to her or his: not measured; {error}"
    own, area = own_score(model, contrast)
    note = f"transfer to her or his: {own.sentence()}; AUROC {area:.3f}"
    # accuracy alone could be that of a model which always answers the same
    able = area >= ABLE
    return (contrast, note) if able else (None, f"{note}; too little to measure a removal by")


ABLE = 0.75
"""AUROC that the unedited model must have on a transfer task for a removal to show there."""


def of_pairs(
    model: LanguageModel,
    name: str,
    selection: PromptPairs,
    test: PromptPairs,
    *,
    n_selection: int,
    check: PromptPairs | None = None,
) -> Capability:
    """Telling clean from corrupted prompts apart by their answers.

    Without pairs to check the choice on, every second of the selection's templates does it; where there is only
    one, every second pair.
    Raises `UserError` for fewer than four pairs to select on.
    """
    if len(selection) < 4 or len(test) < 2:
        raise UserError(f"{name}: {len(selection)} pairs to choose on and {len(test)} to test are too few (4 and 2)")
    tested, chosen = Contrast.of_pairs(test), Contrast.of_pairs(selection)
    if check is None:
        several = len(chosen.template.unique()) > 1
        label = chosen.template if several else torch.arange(len(chosen)) // 2
        turn = label.unique(return_inverse=True)[1] % 2
        halves = [chosen.rows((turn == half).nonzero()[:, 0]) for half in (0, 1)]
    else:
        halves = [chosen, Contrast.of_pairs(check)]
    whole = together(halves)
    text = [model.token_text(int(ids[0])).strip() for ids in (tested.yes, tested.no)]
    due = {int(token) for one in (whole, tested) for ids in (one.yes, one.no) for token in ids.unique()}
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
        due=tuple(sorted(due)),
        transfer_note="there is no transfer task for this one",
    )


def own(model: LanguageModel, capability: Capability) -> tuple[OwnScore, float]:
    """The model's own score on the test prompts."""
    return own_score(model, capability.test)
