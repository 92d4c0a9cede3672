"""`subrank study NAME`: the settings of each study as options; what it does stands in `subrank/studies/NAME.py`."""

import argparse
from functools import partial
from importlib import import_module
from pathlib import Path

from subrank.cli.arguments import result_folder
from subrank.cli.parsers import Verbs, settings_of
from subrank.cli.terminal import reporting, say, say_results
from subrank.settings.studies import STUDIES


def add(verbs: Verbs) -> None:
    """Declare the verb, and the studies below it."""
    studies = verbs.add_several("study", "published experiments, repeated with controls")
    for name, study in STUDIES.items():
        studies.add_without_model(name, study.text, partial(run, name), study.settings, f"./{name}")


def run(name: str, options: argparse.Namespace) -> None:
    """Run a study that reads no language model."""
    module = name.replace("-", "_")
    run_study = getattr(import_module(f"subrank.studies.{module}"), f"run_{module}")
    settings = settings_of(options, STUDIES[name].settings)
    out = result_folder(options.out or Path(name), options)
    with reporting() as report:
        result = run_study(settings, report)
    for line in result.lines():
        say(f"  {line}")
    say_results(result, result.save(out))
