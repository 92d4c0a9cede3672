"""The parsers of the verbs, with the options that several of them share."""

import argparse
from collections.abc import Callable
from pathlib import Path

Run = Callable[[argparse.Namespace], int | None]


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Verbs:
    """The verbs of a command line, to which each module adds its own."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(self, name: str, run: Run, text: str, out: str) -> argparse.ArgumentParser:
        """The parser of a verb that writes its results to `out` by default."""
        one = self._parsers.add_parser(name, help=text, description=text, formatter_class=_Help)
        one.set_defaults(run=run)
        one.add_argument("--out", type=Path, default=None, help=f"folder for the results (default: {out})")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--device", default=None, help="torch device; CUDA where there is one")
        return one

    def add_on_set(self, name: str, run: Run, text: str) -> argparse.ArgumentParser:
        """The parser of a verb that works on a saved set."""
        one = self.add(name, run, text, f"DIR/{name}")
        one.add_argument("dir", metavar="DIR", type=Path, help="folder that `subrank train` wrote")
        one.add_argument("--model", default=None, help="where the model is now, if not where it was")
        one.add_argument("--text", default=None, help="another text than the one trained on")
        return one
