"""Random command lines: every verb and every option, with values that are right, wrong, absurd, or of another type."""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from subrank.cli.command import build_parser

NUMBERS = ("0", "1", "2", "3", "16", "64", "-1", "-1e3", "0.5", "1.5", "nan", "inf", "-inf", "1e30", "1e-320", "9" * 30)
NUMBERS += ("9" * 5000, "0x10", "1_0", "½", "4294967296", "1e3")
TEXTS = ("", " ", "-", "--", "x", "a" * 5000, "\udc80", "\u202e", "storybook", "Mary went to the store", "None", "all")
TEXTS += (
    "she",
    "logit: she - he",
    "logit: she",
    "logit:",
    "logit: \\",
    "task: ioi",
    "task: x",
    "next: )",
    "next:",
    "(",
)
NAMES = ("resid_post.1", "resid_post", "resid_post.9", "resid_post.1-3", "resid_post.3-1", "resid_post.0-999999999999")
NAMES += ("blocks.2.hook_resid_post", "blocks.99.mlp.hook_post", "5_1", "5_99999", "mlp_out.5_1", "5_-1", "IO", "-1")
NAMES += ("resid_post.²", "5_²", "resid_post." + "9" * 5000, "5_" + "9" * 5000, "resid_pre.0", "5_1,5_2", ",", "pca")
PLACES = ("cpu", "meta", "cuda:99", "abacus", "cpu:5", "float16", "none.json", "none/none", "~nobody/x", "a/b/c", "./x")
RIGHT = 0.8
"""Share of the values that are taken from those of the option itself."""


@dataclass(frozen=True)
class CommandLine:
    """A command line, and the seed that it is drawn by."""

    seed: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        shown = " ".join(repr(word if len(word) < 60 else word[:20] + "...") for word in self.arguments)
        return f"seed {self.seed!r}: subrank {shown}"


def command_line(seed: str, verb: str, positionals: Sequence[str], files: Sequence[Path]) -> CommandLine:
    """The command line of that seed: a verb, the arguments that it needs (mostly), and up to four options."""
    draw = random.Random(seed)
    words = [*verb.split(), *(word if draw.random() < 0.97 else draw.choice(TEXTS + PLACES) for word in positionals)]
    options = [action for action in verb_parser(verb)._actions if action.option_strings and action.dest != "help"]
    for action in draw.sample(options, draw.randint(1, 4)):
        words.append(draw.choice(action.option_strings))
        words += values_of(action, draw, [str(file) for file in files])
    if draw.random() < 0.02:
        words.append(draw.choice(("--unknown", "-x", "--out", "extra")))
    return CommandLine(seed, tuple(words))


@cache
def verb_parser(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb."""
    parser = build_parser()
    for word in verb.split():
        (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = verbs.choices[word]
    return parser


def values_of(action: argparse.Action, draw: random.Random, files: Sequence[str]) -> list[str]:
    """Values for an option, as many as it takes, or nearly."""
    if action.nargs == 0:
        return []
    n = draw.choice((1, 1, 2, 3)) if action.nargs in ("+", "*") else 1
    if draw.random() < 0.02:
        n = draw.choice((0, 2))
    kind = getattr(action.type, "__name__", "")
    right = list(action.choices or {"path": files, "word": [*NAMES[:2], "storybook"]}.get(kind, ["1", "8", "16", "64"]))
    pool = [*NUMBERS, *TEXTS, *NAMES, *PLACES, *files]
    return [draw.choice(right) if draw.random() < RIGHT else draw.choice(pool) for _ in range(n)]
