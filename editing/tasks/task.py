"""Any task by its name, or by the file that holds its pairs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from editing.tasks.brackets import BracketTask
from editing.tasks.ioi import Corruption, IOITask
from editing.tasks.pairs import PromptPairs
from editing.tasks.pronouns import Form, Split, pronoun_pairs
from editing.tasks.user_pairs import UserPairs
from sae_core.errors import UserError, did_you_mean
from sae_core.files import user_path
from sae_core.model.language_model import LanguageModel

MOST = 2048
"""Cap on pairs per draw; templates x names reach millions."""


@dataclass(frozen=True)
class Task:
    """Pairs of prompts for one behaviour, to be drawn by split."""

    name: str
    draw: Callable[..., PromptPairs]
    """Of (split, n), and by keyword seed, prepend_bos and, where there are several, corruption."""
    splits: tuple[str, ...]
    shared: tuple[str, ...]
    """What splits have in common of the things that they should not share; empty where there is nothing."""
    corruptions: tuple[str, ...] = ()
    """Where there are several, the first being the default."""
    about: str = ""
    """The prompts and their splits in words."""
    transfer: str | None = None
    """The name of the task on which an edit chosen on this one can be tested as well."""
    labels: Callable[[], Mapping[str, str]] = dict
    """The class of each clean prompt, by its text, where a file states it (`UserPairs.labels`); else nothing."""
    at_most: int = MOST

    def pairs(
        self, split: str, n: int, *, seed: int, corruption: str | None = None, prepend_bos: bool = True
    ) -> PromptPairs:
        """`n` pairs of one split, or as many as there are, `at_most` so many; the same ones for the same seed."""
        if split not in self.splits:
            raise UserError(f"task {self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        if n < 1:
            raise UserError(f"task {self.name}: at least one prompt is needed; got {n}")
        self.check(corruption)
        which = {"corruption": corruption or self.corruptions[0]} if self.corruptions else {}
        return self.draw(split, min(n, self.at_most), seed=seed, prepend_bos=prepend_bos, **which)

    def check(self, corruption: str | None) -> None:
        """Raise `UserError` for a corruption that the task does not know."""
        if corruption is not None and corruption not in self.corruptions:
            known = f"it knows {', '.join(self.corruptions)}" if self.corruptions else "it has only one, without a name"
            raise UserError(f"task {self.name} has no corruption {corruption!r}; {known}")


def task_of(name: str | Path, model: LanguageModel, *, skip_unfit: bool = False) -> Task:
    """The task `ioi`, `pronouns`, `possessives` or `brackets` in `model`'s vocabulary, or that of a `.jsonl` file.

    Raises `UserError` for another name, and where the prompts do not fit the model; of a file, `skip_unfit` leaves
    out the lines that do not, as long as others do.
    """
    path = user_path(name)
    if str(name) in TASKS:
        return TASKS[str(name)](model)
    if not path.exists() and path.suffix not in (".jsonl", ".json") and len(path.parts) < 2:
        meant = did_you_mean(name, TASKS)
        raise UserError(f"no task {str(name)!r}{meant}; give {', '.join(TASKS)}, or a .jsonl file of pairs")
    file = UserPairs.of(path, model, skip_unfit=skip_unfit)
    n_pairs, things = sum(map(len, file.splits.values())), "prompts, and no declared words or templates"
    skipped = f" ({file.left_out} more do not fit)" if file.left_out else ""
    about = f"{n_pairs} pairs{skipped}; {_apart(file.shared, things)}"
    return Task(str(name), partial(file.pairs, model), tuple(file.splits), file.shared, about=about, labels=file.labels)


def task_and_corruption(text: str, model: LanguageModel) -> tuple[Task, str | None]:
    """The task that `text` names and how its prompts are corrupted: "ioi" (the usual way) or "ioi, swap"."""
    name, _, corruption = (part.strip() for part in text.partition(","))
    if name not in TASKS:  # a file's name may hold commas
        return task_of(text.strip(), model), None
    task = task_of(name, model)
    task.check(corruption or None)
    return task, corruption or None


def _apart(shared: tuple[str, ...], things: str) -> str:
    return f"the splits share {' and '.join(shared)}" if shared else f"the splits share no {things}"


def _ioi(model: LanguageModel) -> Task:
    words = IOITask.of(model)

    def draw(split: str, n: int, *, corruption: str, seed: int, prepend_bos: bool) -> PromptPairs:
        return words.pairs(model, Corruption(corruption), split, n, seed=seed, prepend_bos=prepend_bos)

    sentences = {template for half in words.templates.values() for template in half}
    apart = _apart(words.shared, "names and no templates")
    about = "; ".join((f"{words.form} form, {len(sentences)} sentences in both orders", apart, *words.notes))
    return Task("ioi", draw, ("selection", "test"), words.shared, tuple(Corruption), about)


def _pronouns(form: Form, transfer: str | None, model: LanguageModel) -> Task:
    def draw(split: str, n: int, *, seed: int, prepend_bos: bool) -> PromptPairs:
        return pronoun_pairs(model, [Split(split)], n, seed=seed, prepend_bos=prepend_bos, form=form)

    draw("test", 2, seed=0, prepend_bos=True)  # refuse now what does not fit
    name, about = ("pronouns", "she or he") if form is Form.SUBJECT else ("possessives", "her or his")
    about = f"{about} after a name, as often; {_apart((), 'names and no templates')}"
    return Task(name, draw, tuple(Split), (), about=about, transfer=transfer)


def _brackets(model: LanguageModel) -> Task:
    words = BracketTask.of(model)
    n_templates = len({template for half in words.templates.values() for template in half})
    about = f"closing brackets and quotes, {n_templates} templates; {_apart(words.shared, 'words and no templates')}"
    return Task("brackets", partial(words.pairs, model), ("selection", "test"), words.shared, about=about)


TASKS: dict[str, Callable[[LanguageModel], Task]] = {
    "ioi": _ioi,
    "pronouns": partial(_pronouns, Form.SUBJECT, "possessives"),
    "possessives": partial(_pronouns, Form.POSSESSIVE, None),
    "brackets": _brackets,
}
