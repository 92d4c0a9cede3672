"""The parsers of the verbs: settings (`subrank/settings`) as options, and what the verbs share.

Why argparse and not a library on top of it: see CONTRIBUTING.md.
"""

import argparse
import re
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from sae_core import checks
from sae_core.errors import UserError
from sae_core.marks import marked
from sae_core.model.precision import Precision
from subrank.cli.ranks import is_first
from subrank.settings.fields import choices, documented, flag_of, hints, is_several, limits_of, make, single_type

Run = Callable[[argparse.Namespace], int | None]
S = TypeVar("S")
NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$", re.IGNORECASE)
"""What argparse takes for a value although it begins like an option."""


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake with one line and exit status 2, and reads -1e3 as a number."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        self._negative_number_matcher = NEGATIVE  # argparse's own knows no exponents

    def error(self, message: str) -> NoReturn:
        if not is_first():
            self.exit(2)
        self.exit(2, f"{self.prog.split()[0]}: {marked(' '.join(message.split()))}; see {self.prog} --help\n")


class Verbs:
    """The verbs of a command line, to which each module adds its own."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    def add_several(self, name: str, text: str) -> "Verbs":
        """A verb that is a group of others."""
        return Verbs(self._parsers.add_parser(name, help=text, description=text))

    def add_without_model(self, name: str, text: str, run: Run, settings: type, out: str) -> Parser:
        """The parser of a verb whose options are the fields of `settings`, and that writes its results to `out`.

        `text` is what the verb does, in the list of verbs and in its help.
        """
        parser = self._parsers.add_parser(name, help=text, description=text)
        parser.set_defaults(run=run)
        parser.add_argument("--out", type=path, default=None, help=f"folder for the results (default: {out})")
        add_settings(parser, settings)
        return parser

    def add(self, name: str, run: Run, settings: type, out: str, text: str | None = None) -> Parser:
        """The parser of a verb that reads a language model; its text is by default the docstring of `run`."""
        text = text or (run.__doc__ or "").splitlines()[0].partition(": ")[2].rstrip(".")
        parser = self.add_without_model(name, text, run, settings, out)
        parser.add_argument("--device", type=word, default=None, help="torch device; CUDA where there is one")
        parser.add_argument(
            "--dtype",
            choices=get_args(Precision),
            default="auto",
            help="precision of the language model (default: auto: on CUDA the checkpoint's, elsewhere float32)",
        )
        together = "contexts of a text that go through the language model together; less takes less memory"
        parser.add_argument("--lm-batch", type=count, default=None, metavar="N", help=together)
        return parser

    def add_on_set(self, name: str, run: Run, settings: type) -> Parser:
        """The parser of a verb that works on one saved set."""
        parser = self.add(name, run, settings, f"DIR/{name}")
        parser.add_argument("dir", metavar="DIR", type=path, help="folder that `subrank train` wrote")
        parser.add_argument("--model", type=word, default=None, help="where the model is now, if not where it was")
        return parser

    def add_on_sets(self, name: str, run: Run, settings: type, out: str, text: str | None = None) -> Parser:
        """The parser of a verb that works on one or several saved sets."""
        parser = self.add(name, run, settings, out, text)
        parser.add_argument(
            "dirs", metavar="DIR", nargs="+", type=path, help="folder of a set, or of a sweep: all its sets"
        )
        parser.add_argument("--model", type=word, default=None, help="where the model is now, if not where it was")
        return parser


def path(text: str) -> Path:
    """A path from the command line; the empty text is no path."""
    return Path(word(text))


def word(text: str) -> str:
    """A text from the command line that is not empty: no option is ignored as if it had not been given."""
    try:
        checks.text("it", text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def count(text: str) -> int:
    """A whole number from the command line, at least 1."""
    try:
        checks.whole("it", int(text), 1)
    except ValueError as error:  # `UserError` is one
        raise argparse.ArgumentTypeError(str(error)) from error
    return int(text)


def add_settings(parser: argparse.ArgumentParser, kind: type) -> None:
    """An option for each field of a dataclass of settings. What is not on the command line is not in the namespace."""
    helps, groups = documented(kind), {}
    for each in fields(kind):
        heading = each.metadata.get("group")
        if heading and heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        into = groups[heading] if heading else parser
        into.add_argument(
            flag_of(each), dest=each.name, default=argparse.SUPPRESS, **_how(each, kind, helps[each.name])
        )


def stated(options: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The settings that were on the command line, by name."""
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in vars(options).items() if name in names}


def settings_of(options: argparse.Namespace, kind: type[S]) -> S:
    """The settings that the command line describes; raises `UserError` for values that are not allowed."""
    return make(kind, stated(options, kind))


def _how(each: Field, kind: type, text: str) -> dict[str, Any]:
    """How argparse reads a field: its type, how many values, what is allowed; and its help."""
    hint, default = hints(kind)[each.name], each.default
    help = " ".join(text.split()).replace("%", "%%")
    notes = [checks.limits(**limits_of(each))]
    if default not in (None, False, True, ()) and "default" not in help:
        notes.append(f"default: {' '.join(map(str, default)) if isinstance(default, tuple) else default}")
        notes.append(f"{large} for large models" if (large := each.metadata.get("large")) else "")
    help += f" ({'; '.join(filter(None, notes))})" if any(notes) else ""
    single = single_type(hint)
    if single is bool:
        action = "store_true" if default is False else argparse.BooleanOptionalAction
        return {"action": action, "help": help}
    how: dict[str, Any] = {"help": help, "type": {Path: path, str: word}.get(single, single)}
    if allowed := choices(hint):
        how["choices"] = allowed
    if is_several(hint):
        how["nargs"] = "*" if each.metadata.get("empty") else "+"
    if metavar := each.metadata.get("metavar"):
        how["metavar"] = metavar
    return how
