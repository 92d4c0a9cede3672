"""`subrank ioi`."""

import argparse
from pathlib import Path

from subrank.cli.arguments import model_of, result_folder, sets_of
from subrank.cli.parsers import Verbs, settings_of
from subrank.cli.terminal import reporting, say, say_results
from subrank.settings.experiments import IOISettings


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verbs.add_on_sets("ioi", run, IOISettings, "DIR/ioi, or ./ioi where there are several DIR")


def run(options: argparse.Namespace) -> int:
    """`subrank ioi`: IOI patching: how many features carry the indirect object."""
    from subrank.experiments.ioi import ioi_config, positions_of, run_ioi
    from subrank.saes import by_name, text_of

    settings = settings_of(options, IOISettings)
    sets = by_name(sets_of(options.dirs))
    # what is wrong with the settings is said before the model is loaded
    ioi_config(settings, next(iter(sets.values())))
    positions_of(settings.positions)
    for saes in sets.values():
        if settings.site:
            saes.at(settings.site)
    if len(sets) == 1:
        sets = {"dictionary": next(iter(sets.values()))}
    out = result_folder(options.out or (options.dirs[0] / "ioi" if len(options.dirs) == 1 else Path("ioi")), options)
    for note in text_of(sets, settings.text)[1]:
        say(note)
    model = model_of(options.model or next(iter(sets.values())).model, options)
    with reporting() as report:
        result = run_ioi(model, sets, settings, report)
    for line in result.sentences():
        say(f"  {line}")
    return say_results(result, result.save(out))
