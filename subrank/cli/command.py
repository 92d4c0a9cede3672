"""The command `subrank`: reads the command line and runs the verb.

Nothing heavy is imported before it is needed, so that `subrank --help` answers at once. A user's mistake
ends with one line and exit status 2; results appear whole or not at all.
"""

import argparse
import sys
from contextlib import ExitStack

from subrank import __version__
from subrank.cli import circuit, demo, evaluate, features, harvest, importing, ioi, prompt, remove, steer, study, train
from subrank.cli.parsers import Parser, Verbs
from subrank.cli.ranks import is_first
from subrank.cli.stopping import Stopped, stoppable

WAYS_OUT = "give a smaller --lm-batch, fewer --contexts or --prompts; in training a smaller --expansion or --batch"
"""What takes less memory."""


def build_parser() -> argparse.ArgumentParser:
    """All verbs with their options."""
    story = "Find a language model's features, edit them one at a time, draw the circuits they form."
    parser = Parser(prog="subrank", description=story)
    parser.add_argument("--version", action="version", version=f"subrank {__version__}")
    verbs = Verbs(parser)
    for verb in (demo, harvest, train, importing, evaluate, ioi, circuit, remove, steer, features, prompt, study):
        verb.add(verbs)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        with stoppable():
            return _run(arguments)
    except Stopped as stop:
        if is_first():
            print(f"subrank: stopped{stop.advice}", file=sys.stderr)
        return stop.status


def _run(arguments: list[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    from sae_core.errors import UserError
    from sae_core.marks import marked

    try:
        with ExitStack() as options.at_end:
            return options.run(options) or 0
    except UserError as error:
        if not hasattr(options, "speaks") or options.speaks():
            print(f"subrank: {marked(' '.join(str(error).split()))}", file=sys.stderr)
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        from sae_core.room import out_of_memory

        if line := out_of_memory(error):
            print(f"subrank: not enough memory ({line}); {WAYS_OUT}", file=sys.stderr)
        elif isinstance(error, OSError):
            print(f"subrank: {error.filename or ''}: {error.strerror or error}".replace(": :", ":"), file=sys.stderr)
        else:
            raise
    return 2


if __name__ == "__main__":
    sys.exit(main())
