"""`subrank remove`."""

import argparse

from subrank.cli.arguments import model_of, result_folder
from subrank.cli.parsers import Verbs, settings_of, word
from subrank.cli.terminal import reporting, say, say_results
from subrank.settings.experiments import RemoveSettings


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_on_set("remove", run, RemoveSettings)
    text = "pronouns, possessives, brackets, ioi, or a .jsonl file of pairs (default: pronouns)"
    parser.add_argument("--task", type=word, default="pronouns", help=text)


def run(options: argparse.Namespace) -> int:
    """`subrank remove`: remove a capability and measure what else changed."""
    from subrank.experiments.removal import removal_config, run_remove
    from subrank.saes import load

    settings = settings_of(options, RemoveSettings)
    saes = load(options.dir)
    config = removal_config(settings, saes)
    out = result_folder(options.out or options.dir / "remove", options)
    model = model_of(options.model or saes.model, options)
    with reporting() as report:
        result = run_remove(model, saes, options.task, settings, config, report)
    page = result.save(out)
    for line in result.lines():
        say(line)
    return say_results(result, page)
