"""`subrank prompt`."""

import argparse

from subrank.cli.arguments import model_of, result_folder
from subrank.cli.parsers import Verbs, path, settings_of, word
from subrank.cli.steer import say_unknown
from subrank.cli.terminal import reporting, say, say_results
from subrank.settings.prompt import PromptSettings


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_on_set("prompt", run, PromptSettings)
    parser.add_argument("prompt", metavar="PROMPT", type=word, help='a text in quotation marks: "print ( sqrt ( x"')
    text = "folder of a result of `subrank circuit`: its features and edges are shown where they act on the prompt"
    parser.add_argument("--circuit", type=path, default=None, metavar="FOLDER", help=text)


def run(options: argparse.Namespace) -> int:
    """`subrank prompt`: show the features of one prompt, layer by token, and what they do to the next token."""
    from subrank.experiments.prompt import circuit_of, run_prompt
    from subrank.saes import load

    settings = settings_of(options, PromptSettings)
    saes = load(options.dir)
    circuit = circuit_of(options.circuit, saes)  # what is wrong with it is said before the model is loaded
    out = result_folder(options.out or options.dir / "prompt", options)
    model = model_of(options.model or saes.model, options)
    say_unknown(model, options.prompt)
    with reporting() as report:
        result = run_prompt(model, saes, options.prompt, circuit, settings, report)
    for line in result.lines():
        say(f"  {line}")
    return say_results(result, result.save(out))
