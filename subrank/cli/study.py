"""`subrank study NAME`: the settings of each study as options; what it does stands in `subrank/studies/NAME.py`."""

import argparse
from functools import partial
from importlib import import_module
from pathlib import Path

from subrank.cli.arguments import model_of, result_folder, sets_of
from subrank.cli.parsers import Verbs, settings_of
from subrank.cli.terminal import reporting, say, say_results
from subrank.settings.studies import STUDIES


def add(verbs: Verbs) -> None:
    """Declare the verb, and the studies below it."""
    studies = verbs.add_several("study", "published experiments, repeated with controls")
    for name, study in STUDIES.items():
        if study.on_sets:
            studies.add_on_sets(name, partial(run, name), study.settings, f"./{name}", study.text)
        else:
            studies.add_without_model(name, study.text, partial(run, name), study.settings, f"./{name}")


def run(name: str, options: argparse.Namespace) -> None:
    """Run a study, and save its result."""
    from subrank.saes import by_name

    module, study = name.replace("-", "_"), STUDIES[name]
    run_study = getattr(import_module(f"subrank.studies.{module}"), f"run_{module}")
    settings = settings_of(options, study.settings)
    sets = sets_of(options.dirs) if study.on_sets else {}
    out = result_folder(options.out or Path(name), options)
    if study.keeps:
        run_study = partial(run_study, folder=out)
    if study.each_model:
        named = {each: options.model or saes.model for each, saes in sets.items()}
        models = {each: model_of(each, options) for each in set(named.values())}
        run_study = partial(run_study, {each: models[place] for each, place in named.items()}, sets)
    elif sets:
        run_study = partial(
            run_study, model_of(options.model or next(iter(sets.values())).model, options), by_name(sets)
        )
    with reporting() as report:
        result = run_study(settings, on_progress=report)
    for line in result.lines():
        say(f"  {line}")
    say_results(result, result.save(out))
