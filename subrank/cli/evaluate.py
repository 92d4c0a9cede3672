"""`subrank evaluate`."""

import argparse
from pathlib import Path

from subrank.cli.arguments import model_of, result_folder, sets_of
from subrank.cli.parsers import Verbs, settings_of
from subrank.cli.terminal import reporting, say, say_results
from subrank.settings.experiments import EvaluateSettings


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    out = "DIR/evaluate, or ./evaluation where there are several DIR"
    verbs.add_on_sets("evaluate", run, EvaluateSettings, out)


def run(options: argparse.Namespace) -> int:
    """`subrank evaluate`: measure one or several sets of dictionaries, and how alike they are."""
    from subrank.experiments.evaluation import run_evaluate
    from subrank.saes import by_name, text_of

    settings = settings_of(options, EvaluateSettings)
    sets = by_name(sets_of(options.dirs))
    alone = len(options.dirs) == 1
    out = result_folder(options.out or (options.dirs[0] / "evaluate" if alone else Path("evaluation")), options)
    for note in text_of(sets, settings.text)[1]:
        say(note)
    model = model_of(options.model or next(iter(sets.values())).model, options)
    with reporting() as report:
        result = run_evaluate(model, sets, settings, report)
    for line in result.evaluation.lines():
        say(f"  {line}")
    return say_results(result, result.save(out))
