"""`subrank harvest`."""

import argparse
from pathlib import Path

from subrank.cli.arguments import model_of, shared
from subrank.cli.parsers import Verbs, settings_of, word
from subrank.cli.terminal import reporting, say
from subrank.settings.train import HarvestSettings


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add("harvest", run, HarvestSettings, "./activations")
    models = "'storybook', a Hugging Face directory, a .gguf file, or a hub name"
    parser.add_argument("model", metavar="MODEL", type=word, help=models)
    text = "'storybook', a file, a folder, a dataset[:config] (default: storybook)"
    parser.add_argument("--text", type=word, default="storybook", help=text)


def run(options: argparse.Namespace) -> int:
    """`subrank harvest`: keep the activations that a training reads; several processes may fill one folder."""
    from subrank.experiments.harvest import Harvest
    from subrank.result import QUICK

    settings = settings_of(options, HarvestSettings)
    folder = shared(options.out or Path("activations"))
    with reporting() as report:
        work = Harvest.of(model_of(options.model, options), options.text, folder, settings)
        work.run(report)
    if settings.quick:
        say(QUICK)
    n_bytes = sum(work.cache.path(block).stat().st_size for block in range(work.n_blocks))
    say(
        f"activations: {folder}, {work.n_blocks} blocks, {n_bytes / 2**30:.2g} GiB; subrank train reads them by --cache"
    )
    return 0
