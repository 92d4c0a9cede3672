"""Pairs of a user's own, from a file with one JSON object to a line.

    {"clean": "The key to the cabinets", "corrupted": "The keys to the cabinets", "answer": "is", "foil": "are"}

Or with the names that the subject-verb agreement files of feature-circuits (Marks et al. 2024) use: clean_prefix,
patch_prefix, clean_answer, patch_answer. Optional: `rival`, the wrong answer for the model's own score (the foil,
if left out); `split`, selection or test (also train, check or validation), on every line or on none; `template`,
any label, what prompts share and a bootstrap resamples; `words`, a list of those that make lines alike; `label`,
the class of the clean prompt, which removal needs where the answers of a file are more than one pair. Other fields are
left alone. A line that repeats another counts once.

Where no split is declared, lines are divided by hash, and those with a template, a word of `words`, or a prompt in
common fall into one half. An answer that starts a word needs no space before it: one is put there.
"""

import hashlib
import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editing.tasks.pairs import PromptPairs, TextPair, as_tokens
from sae_core.errors import UserError
from sae_core.files import parse_json, read_text, user_path
from sae_core.model.language_model import LanguageModel

FIELDS = ("clean", "corrupted", "answer", "foil")
_THEIRS = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer")
_SPLITS = {"selection": "selection", "train": "selection", "check": "check", "validation": "check", "test": "test"}


@dataclass(frozen=True)
class Line:
    """One line of a file of pairs."""

    number: int
    pair: TextPair
    split: str | None
    template: str | None
    words: tuple[str, ...]
    label: str | None = None

    def prompts(self) -> tuple[str, str]:
        """Both prompts."""
        return self.pair.clean, self.pair.corrupted


@dataclass(frozen=True)
class UserPairs:
    """The pairs of a file that fit a model, by split."""

    path: Path
    splits: dict[str, list[Line]]
    shared: tuple[str, ...]
    """What splits have in common of templates, declared words and prompts."""
    left_out: int
    """Lines that do not fit the model and were skipped."""

    @classmethod
    def of(cls, path: str | Path, model: LanguageModel, *, skip_unfit: bool = False) -> "UserPairs":
        """The pairs of `path`; raises `UserError` for the first line that does not fit, unless they are skipped."""
        path = user_path(path)
        lines, left_out = _fitting(path, read_lines(path), model, skip_unfit)
        return cls(path, *divide(lines), left_out)

    def pairs(self, model: LanguageModel, split: str, n: int, *, seed: int, prepend_bos: bool = True) -> PromptPairs:
        """`n` pairs of one split, or as many as there are."""
        name = self.path.stem
        if not self.splits.get(split):
            present = ", ".join(split for split, lines in self.splits.items() if lines)
            raise UserError(f"{name} has no pairs for {split}; it has some for {present}")
        lines = self.splits[split]
        drawn = random.Random(f"{seed}/{name}/{split}").sample(lines, min(n, len(lines)))
        return as_tokens(model, name, [line.pair for line in drawn], prepend_bos=prepend_bos)

    def labels(self) -> dict[str, str]:
        """The `label` of every clean prompt, by its text; empty if none has one.

        Raises `UserError` unless all lines have one, the same for the same prompt, and there are two in all.
        """
        lines = [line for part in self.splits.values() for line in part]
        labels: dict[str, str] = {}
        for line in lines:
            text, label = line.pair.clean, line.label
            if label is not None and labels.setdefault(text, label) != label:
                raise UserError(
                    f"{self.path}: {text!r} has the labels {labels[text]} and {label}; a prompt is of one class"
                )
        without = sum(line.label is None for line in lines)
        if labels and (without or len({*labels.values()}) != 2):
            raise UserError(
                f'{self.path}: give every line a "label" or none, two different ones in all; {without} of '
                f"{len(lines)} lines have none, the others {', '.join(sorted({*labels.values()}))}"
            )
        return labels


def load_pairs(
    path: str | Path, model: LanguageModel, *, prepend_bos: bool = True, skip_unfit: bool = False
) -> PromptPairs:
    """All pairs of a file, in its order; raises `UserError` with file and line for one that does not fit."""
    lines, _ = _fitting(Path(path), read_lines(path), model, skip_unfit)
    return as_tokens(model, Path(path).stem, [line.pair for line in lines], prepend_bos=prepend_bos)


def read_lines(path: str | Path) -> list[Line]:
    """The lines of a file, checked but not tokenised; raises `UserError` with file and line for what is malformed."""
    path, distinct = user_path(path), {}
    if not path.is_file():
        raise UserError(f"no file of pairs at {path}")
    for number, text in enumerate(read_text(path).split("\n"), 1):
        if text.strip():
            fields = parse_json(text, f"{path}, line {number}")
            try:
                line = _line(number, fields)
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from error
            pair = line.pair
            first = distinct.setdefault((pair.clean, pair.corrupted, pair.answer, pair.foil), line)
            if first.label != line.label:
                raise UserError(
                    f"{path}, line {number}: repeats line {first.number} with another label; give each pair one label"
                )
    if not distinct:
        raise UserError(f"{path} holds no pairs; a line is a JSON object with {', '.join(FIELDS)}")
    lines = list(distinct.values())
    without = [line.number for line in lines if line.split is None]
    if 0 < len(without) < len(lines):
        raise UserError(f'{path}, line {without[0]}: no "split", but other lines have one; give it on all or on none')
    return lines


def _line(number: int, fields: Any) -> Line:
    """One parsed line; raises `UserError` for what is missing or of the wrong kind."""
    if not isinstance(fields, dict):
        raise UserError(f"expected a JSON object with {', '.join(FIELDS)}")
    names_here = _THEIRS if "clean_prefix" in fields else FIELDS
    for name in names_here:
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise UserError(f'"{name}" must be a text; expected {", ".join(FIELDS)} (or {", ".join(_THEIRS)})')
    clean, corrupted, answer, foil = (fields[name] for name in names_here)
    optional = ("rival", "split", "template", "words", "label")
    rival, split, template, words, label = (fields.get(name) for name in optional)
    if split is not None and (not isinstance(split, str) or split not in _SPLITS):
        raise UserError(f'"split" is {split!r}; it must be one of {", ".join(_SPLITS)}')
    if not isinstance(template, str | int | None):
        raise UserError('"template" must be a label, a text or a number')
    if not isinstance(words, list | None) or not all(isinstance(word, str) for word in words or ()):
        raise UserError('"words" must be a list of texts')
    if not isinstance(rival, str | None) or rival == "":
        raise UserError('"rival" must be a text')
    answer, foil, rival = (continued(clean, text) for text in (answer, foil, rival or foil))
    template, label = (None if value is None else str(value) for value in (template, label))
    group: Hashable = ("template", template) if template is not None else ("prompts", frozenset((clean, corrupted)))
    pair = TextPair(clean, corrupted, answer, foil, rival, group)
    return Line(number, pair, _SPLITS.get(split or ""), template, tuple(words or ()), label)


def continued(prompt: str, answer: str) -> str:
    """`answer` as it continues `prompt`: with a space where it would otherwise run into a word or a stop."""
    runs_in = answer[0].isalnum() and (prompt[-1].isalnum() or prompt[-1] in ".,;:!?)]}")
    return f" {answer}" if runs_in else answer


def _fitting(path: Path, lines: list[Line], model: LanguageModel, skip_unfit: bool) -> tuple[list[Line], int]:
    """The lines that fit the model, and how many do not."""
    fitting, trouble = [], []
    for line in lines:
        try:
            line.pair.ids(model)
            fitting.append(line)
        except UserError as error:
            trouble.append(f"{path}, line {line.number}: {error}")
    if trouble and not (skip_unfit and fitting):
        way_out = "; take such lines out" if fitting else ""
        rest = f" ({len(trouble)} of {len(lines)} pairs do not fit{way_out})"
        raise UserError(trouble[0] + rest)
    return fitting, len(trouble)


# ---- splits ----------------------------------------------------------------------------------------

_LINKS: dict[str, Callable[[Line], Iterable[Hashable]]] = {
    "words": lambda line: line.words,
    "templates": lambda line: () if line.template is None else (line.template,),
    "prompts": Line.prompts,
}


def divide(lines: Sequence[Line]) -> tuple[dict[str, list[Line]], tuple[str, ...]]:
    """The lines by split, and what splits have in common of words, templates and prompts.

    Undeclared, whole clusters of linked lines go to selection and test, in the order of their hashes, each to the
    half that is smaller so far. Where everything hangs together, words stop to link, then templates, then prompts.
    """
    if lines[0].split is not None:
        splits = {split: [line for line in lines if line.split == split] for split in dict.fromkeys(_SPLITS.values())}
        splits = {split: part for split, part in splits.items() if part}
    else:
        splits = {"selection": [], "test": []}
        kinds = list(_LINKS)
        while len(parts := _clusters(lines, kinds)) < 2 and kinds:
            kinds = kinds[1:]
        for part in sorted(parts, key=_digest):
            min(splits.values(), key=len).extend(part)
    shared = []
    for kind, links in _LINKS.items():
        seen = [{link for line in part for link in links(line)} for part in splits.values()]
        if len(set().union(*seen)) < sum(map(len, seen)):
            shared.append(kind)
    return splits, tuple(shared)


def _clusters(lines: Sequence[Line], kinds: Sequence[str]) -> list[list[Line]]:
    """Lines that hang together through links of some kinds."""
    import networkx as nx  # here, so that nothing else waits for it

    graph = nx.Graph()
    graph.add_nodes_from(range(len(lines)))
    graph.add_edges_from(
        (i, (kind, link)) for i, line in enumerate(lines) for kind in kinds for link in _LINKS[kind](line)
    )
    parts = nx.connected_components(graph)
    return [[lines[i] for i in sorted(node for node in part if isinstance(node, int))] for part in parts]


def _digest(part: Sequence[Line]) -> str:
    """A hash of the prompts of a cluster, the same whatever their order."""
    return hashlib.sha256(repr(sorted(line.prompts() for line in part)).encode()).hexdigest()
