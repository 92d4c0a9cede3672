"""`subrank circuit`."""

import argparse

from subrank.cli.arguments import model_of, result_folder
from subrank.cli.parsers import Verbs, settings_of, word
from subrank.cli.terminal import reporting, say, say_results
from subrank.settings.circuit import CircuitSettings


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_on_set("circuit", run, CircuitSettings)
    text = '5_2079, mlp_out.5_2079, "next: )" (the feature that best predicts it), '
    text += '"logit: she - he", "task: ioi" or "task: ioi, swap"; by default chosen'
    parser.add_argument("--target", type=word, default=None, help=text)


def run(options: argparse.Namespace) -> int:
    """`subrank circuit`: discover the circuit of a feature, a logit or a task, and draw it."""
    from subrank.experiments.circuit import names_of, request_of, run_circuit
    from subrank.saes import load

    settings = settings_of(options, CircuitSettings)
    saes = load(options.dir)
    names_of(settings)  # what is wrong with names, prompts or target is said before the model is loaded
    request = request_of(options.target, settings, saes)
    if options.target is not None and not request.is_logit and not request.next_token:
        saes[options.target]
    out = result_folder(options.out or options.dir / "circuit", options)
    model = model_of(options.model or saes.model, options)
    with reporting() as report:
        result = run_circuit(model, saes, options.target, settings, report, steps_folder=out)
    page = result.save(out)
    measured = result.evaluation.lines() if result.evaluation else result.notes
    for line in filter(None, (result.graph.direct_line(), *measured)):
        say(f"  {line}")
    return say_results(result, page)
