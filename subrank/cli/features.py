"""`subrank features`."""

import argparse

from subrank.cli.arguments import model_of, result_folder
from subrank.cli.parsers import Verbs, settings_of
from subrank.cli.terminal import reporting, say, say_results
from subrank.settings.experiments import FeatureSettings


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_on_set("features", run, FeatureSettings)
    text = "full cards for these: 5_17 mlp_out.3_2, also with commas between them"
    parser.add_argument("--features", nargs="+", default=[], metavar="FEATURE", help=text)


def names_of(texts: list[str]) -> list[str]:
    """Names that stand apart by spaces, commas or both; raises `UserError` where there are texts, but no names."""
    from sae_core.errors import UserError

    names = [name for text in texts for name in text.replace(",", " ").split()]
    if texts and not names:
        raise UserError(f"{' '.join(texts)!r} names no feature; features read like '5_2079' or 'mlp_out.5_2079'")
    return names


def run(options: argparse.Namespace) -> int:
    """`subrank features`: make feature cards: what features respond to, and what they do."""
    from subrank.experiments.features import card_line, chosen_features, run_features
    from subrank.saes import load

    settings, names = settings_of(options, FeatureSettings), names_of(options.features)
    saes = load(options.dir)
    chosen_features(saes, names, settings)  # what is wrong with them is said before the model is loaded
    out = result_folder(options.out or options.dir / "features", options)
    model = model_of(options.model or saes.model, options)
    with reporting() as report:
        result = run_features(model, saes, names, settings, report)
    for card in result.cards:
        say(f"  {card.feature}: {card_line(card)}")
    return say_results(result, result.save(out))
