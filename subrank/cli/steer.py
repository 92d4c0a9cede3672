"""`subrank steer`."""

import argparse
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from sae_core.marks import marked
from subrank.cli.arguments import model_of, result_folder
from subrank.cli.features import names_of
from subrank.cli.parsers import Verbs, settings_of
from subrank.cli.terminal import colourful, reporting, say, say_results
from subrank.settings.experiments import SteerSettings

if TYPE_CHECKING:
    from editing.steering.continuations import Continuation
    from sae_core.model.language_model import LanguageModel


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_on_set("steer", run, SteerSettings)
    text = "e.g. 3_17, or several that are turned together: 3_17 5_20; by default chosen"
    parser.add_argument("--features", "--feature", nargs="+", default=[], metavar="FEATURE", help=text)


def run(options: argparse.Namespace) -> int:
    """`subrank steer`: generate text with features turned up, down or off."""
    from editing.steering.edits import Mode
    from subrank.experiments.steering import described, run_steer, strengths_of, writing_of
    from subrank.saes import load

    settings, names = settings_of(options, SteerSettings), names_of(options.features)
    # what is wrong with the settings is said before the model is loaded
    strengths_of(Mode(settings.mode), settings.strengths)
    writing_of(settings)
    saes = load(options.dir)
    saes.ids(names)
    out = result_folder(options.out or options.dir / "steer", options)
    model = model_of(options.model or saes.model, options)
    for text in settings.prompt or ():
        say_unknown(model, text)
    with reporting() as report:
        result = run_steer(model, saes, names, settings, report)
    for line in described(result.response):
        say(line)
    show(result.texts, colour=colourful())
    return say_results(result, result.save(out))


def say_unknown(model: "LanguageModel", text: str) -> None:
    """Say how many tokens of a prompt the model does not know."""
    ids, unknown = model.to_ids(text), model.tokenizer.unk_token_id
    if ids.count(unknown) and unknown not in model.special_ids:
        say(f"note: {ids.count(unknown)} of the {len(ids)} tokens of {text!r} are unknown to {model.name}")


def show(texts: "Sequence[Continuation]", *, colour: bool) -> None:
    """Print every prompt and below it a block per strength, changed tokens as `{+these+}`, as git marks words."""
    from subrank.pages.steering_page import label

    start, end = ("\033[32m", "\033[0m") if colour else ("", "")
    for prompt, group in groupby(texts, key=lambda text: text.prompt):
        blocks = list(group)
        say(f"\n{prompt} ...")
        for text in blocks:
            runs = ((marked(run).replace("\n", f"\n{' ' * 10}|"), new) for run, new in text.marked())
            words = "".join(f"{start}{{+{run}+}}{end}" if new else run for run, new in runs)
            print(f"{label(text):>9} |{words}{' #' if text.ended else ''}", flush=True)
        if not any(any(text.changed) for text in blocks):
            say("note: no strength changes this; scaling acts only where a feature is active, --mode clamp everywhere")
    say("\n{+changed+}: not in the unedited text. #: the text came to its end.\n")
