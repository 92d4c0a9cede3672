"""The parsers of the verbs, with the options that several of them share."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

Run = Callable[[argparse.Namespace], int | None]
_ABSENT = object()


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake with one line and exit status 2."""

    given: frozenset[str] = frozenset()
    """Names of what stood on the command line that was read last, whatever its value."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.split()[0]}: {' '.join(message.split())}; see {self.prog} --help\n")

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        found = super().parse_known_args(args, namespace)
        # once more with a mark in the place of every default: what still has it was not given
        marked = argparse.Namespace(**dict.fromkeys(vars(found[0]), _ABSENT))
        super().parse_known_args(args, marked)
        self.given = frozenset(name for name, value in vars(marked).items() if value is not _ABSENT)
        return found


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Verbs:
    """The verbs of a command line, to which each module adds its own."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)

    def add(self, name: str, run: Run, text: str, out: str) -> Parser:
        """The parser of a verb that writes its results to `out` by default."""
        one = self._parsers.add_parser(name, help=text, description=text, formatter_class=_Help)
        one.set_defaults(run=run)
        one.add_argument("--out", type=Path, default=None, help=f"folder for the results (default: {out})")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--device", default=None, help="torch device; CUDA where there is one")
        return one

    def add_on_set(self, name: str, run: Run, text: str) -> Parser:
        """The parser of a verb that works on a saved set."""
        one = self.add(name, run, text, f"DIR/{name}")
        one.add_argument("dir", metavar="DIR", type=Path, help="folder that `subrank train` wrote")
        one.add_argument("--model", default=None, help="where the model is now, if not where it was")
        one.add_argument("--text", default=None, help="another text than the one trained on")
        return one
