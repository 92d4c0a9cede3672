"""`subrank features`: a card for every feature of a set, and full ones with a page for some."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subrank.cli.arguments import at_least, site_of
from subrank.cli.parsers import Verbs
from subrank.cli.results import save_result
from subrank.cli.sets import open_set
from subrank.cli.terminal import report, say

if TYPE_CHECKING:
    from circuits.features.card import Card
    from circuits.features.catalogue import Catalogue
    from sae_core.sites import FeatureId, Site

CHUNK = 256
"""Cards per file."""
_SEEN_OFTEN = 16
"""Tokens on which a feature must be active to be drawn for a full card."""


def add(verbs: Verbs) -> None:
    """Declare `subrank features`."""
    parser = verbs.add_on_set("features", run, "make feature cards: what features respond to, and what they do")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--features", default=None, help="full cards for these: 5_17, or several: 5_17,mlp_out.3_2")
    which.add_argument("--site", default=None, help="full cards for features of this site only, e.g. resid_post.3")
    parser.add_argument("--full", type=int, default=24, help="full cards, for features drawn at random if not named")
    parser.add_argument("--contexts", type=int, default=1000, help="contexts read, and a quarter as many held-out ones")
    parser.add_argument("--neurons", action="store_true", help="beside each full card that of the nearest neuron")


def run(options: argparse.Namespace) -> None:
    """`subrank features`."""
    from editing.steering.feature_text import check_known_features
    from sae_core.errors import UserError
    from sae_core.sites import FeatureId
    from sae_core.storage import load_set

    site = site_of(options.site)
    features = [FeatureId.parse(name.strip()) for name in options.features.split(",")] if options.features else []
    at_least("--full", options.full, 0)
    at_least("--contexts", options.contexts, 8)
    if features or site:  # before anything slow
        dictionaries = load_set(options.dir).dictionaries
        if features:
            check_known_features(dictionaries, features)
        elif site not in dictionaries:
            raise UserError(f"no dictionary for {site}; this set has {', '.join(map(str, sorted(dictionaries)))}")
    features_into(*open_set(options), features, site, options, argv=vars(options))


def features_into(out: Path, model, found, contexts, measured, features, site, options, *, argv) -> "list[Card]":
    """Read all features; write `features/`, `result.json` and `features.html`. Returns the full cards."""
    from circuits.features.catalogue import read_catalogue
    from sae_core.data.text import held_out
    from subrank.pages.evaluation_page import dictionaries_section
    from subrank.pages.features_page import cards_section
    from subrank.pages.page import write_page

    training, held = held_out(contexts)
    training, held = training[: options.contexts], held[: max(2, options.contexts // 4)]
    n_features = sum(len(one.directions) for one in found.dictionaries.values())
    say(f"reading {n_features:,} features on {len(training)} contexts, and {len(held)} held-out ones")
    catalogue = read_catalogue(model, found.dictionaries, training, held, seed=options.seed, on_progress=report)
    features = features or drawn(catalogue, [site] if site else sorted(found.dictionaries), options.full)
    cards = []
    for card in catalogue.full(features):
        cards.append(card)
        say(f"  {card.feature}: {summary(card)}")
    neurons = neurons_of(catalogue, features) if options.neurons else {}
    write_chunks(out / "features", catalogue, cards)
    sites = sites_json(catalogue)
    numbers = {
        "dictionaries": measured.to_json(),
        "contexts": {"training": len(training), "held_out": len(held)},
        "sites": sites,
        "features": [card.to_json() for card in cards],
        "neurons": {str(feature): card.to_json() for feature, card in neurons.items()},
    }
    save_result(out, numbers, model, argv)
    body = cards_section(cards, neurons, sites) + dictionaries_section(measured)
    write_page(out / "features.html", "Features", body)
    say(f"results: {out / 'features.html'}")
    return cards


def summary(card: "Card") -> str:
    """A card in one line."""
    if card.label is None:
        return "no label"
    own, control = card.label.score, card.label.control
    text = " ".join(card.label.text.split())
    return (
        f"{text if len(text) < 72 else text[:69] + '...'} (precision {own.precision:.2f}, recall {own.recall:.2f}, "
        f"correlation {own.correlation:.2f}; others' labels {control.correlation:.2f})"
    )


def drawn(catalogue: "Catalogue", sites: "Sequence[Site]", n: int) -> "list[FeatureId]":
    """`n` features, as evenly over the sites as possible, at random among those that are active often enough."""
    import torch

    from sae_core.seeds import generator_for
    from sae_core.sites import FeatureId

    waiting = []
    for site in sites:
        often = (catalogue.tally.sites[site].active >= _SEEN_OFTEN).nonzero()[:, 0]
        order = torch.randperm(len(often), generator=generator_for(catalogue.seed, "drawn", site))
        waiting.append([FeatureId(site, index) for index in often[order].tolist()])
    rounds = [own[place] for place in range(max(map(len, waiting))) for own in waiting if place < len(own)]
    return sorted(rounds[:n])


def neurons_of(catalogue: "Catalogue", features: "Sequence[FeatureId]") -> "dict[FeatureId, Card]":
    """For each feature the card of the coordinate whose axis is closest to its direction."""
    from circuits.features.catalogue import read_catalogue
    from circuits.features.geometry import coordinates
    from sae_core.sites import FeatureId

    model = catalogue.model
    sites = sorted({feature.site for feature in features})
    say(f"reading the neurons of {len(sites)} sites")
    bases = {site: coordinates(catalogue.dictionaries[site].directions) for site in sites}
    texts = (catalogue.training, catalogue.held)
    neurons = read_catalogue(model, bases, *texts, seed=catalogue.seed, on_progress=report)
    closest = {}
    for feature in features:
        direction = catalogue.dictionaries[feature.site].directions[feature.index]
        closest[feature] = FeatureId(feature.site, int((bases[feature.site].directions @ direction).argmax()))
    alive = sorted({n for n in closest.values() if neurons.tally.sites[n.site].active[n.index]})
    cards = {card.feature: card for card in neurons.full(alive)} if alive else {}
    return {feature: cards[neuron] for feature, neuron in closest.items() if neuron in cards}


def sites_json(catalogue: "Catalogue") -> dict[str, Any]:
    """Per site: latents, those that are alive, and the median scores of their token labels, own and others'."""
    found = {}
    for site in sorted(catalogue.dictionaries):
        alive = catalogue.alive(site)
        medians = {
            name: {
                number: getattr(scores[site], number)[alive].median().item() if alive else 0.0
                for number in ("precision", "recall", "correlation")
            }
            for name, scores in (("tokens_label", catalogue.scores), ("control", catalogue.controls))
        }
        found[str(site)] = {"n_latents": len(catalogue.dictionaries[site].directions), "alive": len(alive)} | medians
    return found


def write_chunks(folder: Path, catalogue: "Catalogue", full: "Sequence[Card]") -> None:
    """Every feature's card, the full one where there is one: `SITE/0.json`, ... of `CHUNK` cards, and `index.json`."""
    from sae_core.files import write_json, write_text

    better, sites = {card.feature: card for card in full}, {}
    for site in sorted(catalogue.dictionaries):
        for number, cards in enumerate(chunks(catalogue.light(site))):
            values = [better.get(card.feature, card).to_json() for card in cards]
            line = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            write_text(folder / str(site) / f"{number}.json", line)
        sites[str(site)] = len(catalogue.dictionaries[site].directions)
    write_json(folder / "index.json", {"chunk": CHUNK, "features": sites, "full": [str(feature) for feature in better]})


def chunks(cards: "Iterator[Card]") -> "Iterator[list[Card]]":
    """The cards, `CHUNK` at a time."""
    from itertools import islice

    while part := list(islice(cards, CHUNK)):
        yield part
