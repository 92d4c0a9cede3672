"""Whole verbs, run as a user runs them, and what they leave behind."""

import json
from pathlib import Path

import torch
from planted import unchecked

from sae_core.model import language_model
from sae_core.storage import load_set
from subrank.cli import command

TRAINING = {"tokens": 60_000}
"""How the sets of storybook are trained that tests of what they explain share, beside the seed."""
SHORT_TRAINING = {"tokens": 20_000}
"""How the one is trained with which the rest is computed: every verb reads as much text."""
_CONTEXTS = ["--contexts", "16"]
_TRAIN = ["--batch", "128", "--context", "32", "--save-every", "0.05"]
LONG_VERBS = {
    "train": ["--tokens", "3072", "--text-tokens", "8192", *_TRAIN],
    "sweep": ["--tokens", "2048", "-k", "4", "8", *_TRAIN],
    "evaluate": [*_CONTEXTS, "--spliced", "2"],
    "ioi": ["--prompts", "8"],
    "circuit": [*_CONTEXTS, "--held", "16", "--cards", "8", "--target", "logit: she - he", "--max-targets", "4"],
    "features": [*_CONTEXTS, "--full", "2"],
    "remove": ["--prompts", "8"],
    "steer": [*_CONTEXTS, "--tokens", "4"],
}
"""What takes long enough to be killed, with options by which it takes a second or two on a tiny model."""
STUDIES = (
    "study superposition",
    "study splitting",
    "study matching",
    "study dark-matter",
    "study scaling",
    "study explain",
)
VERBS = (
    "demo",
    "harvest",
    "train",
    "import",
    "evaluate",
    "ioi",
    "circuit",
    "features",
    "prompt",
    "remove",
    "steer",
    *STUDIES,
)


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a verb; the tests of its parts check their shapes."""
    with unchecked():
        try:
            status = command.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # what the parser refuses
            status = int(stop.code or 0)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def one_line(capsys, *arguments: object) -> str:
    """The line that answers a mistake."""
    status, _, error = run(capsys, *arguments)
    assert status == 2 and len(error.strip().splitlines()) == 1 and error.startswith("subrank: ")
    return error


def result_of(folder: Path) -> dict:
    """What `result.json` holds; beside it lies where it came from."""
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["model"] and provenance["fingerprint"] and provenance["packages"]["torch"] == torch.__version__
    return json.loads((folder / "result.json").read_text())


def most_active(folder: Path) -> str:
    """The name of the feature of the last layer that is active on most tokens."""
    model, dictionaries = language_model.load_model("storybook"), load_set(folder)
    site = max(dictionaries.dictionaries, key=lambda s: s.layer)
    contexts = dictionaries.text.contexts(model)[:40]
    codes = dictionaries.dictionaries[site].encode(model.record(contexts, [site])[site])[model.content(contexts)]
    return f"{site.layer}_{int((codes > 0).sum(0).argmax())}"
