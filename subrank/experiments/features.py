"""`sr.features`, `subrank features`: a card for every feature of a set, and full ones for some."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from markupsafe import Markup

from circuits.features.card import Card
from circuits.features.catalogue import Catalogue, read_catalogue
from circuits.features.dashboards import write_dashboards
from circuits.features.geometry import coordinates
from circuits.features.survey import Survey
from editing.set_quality import SetQuality
from sae_core.errors import UserError
from sae_core.files import write_json, write_text
from sae_core.formats.hook_names import parse_site
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, silent
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site
from sae_core.storage import public_name
from subrank.checking.features import recomputed
from subrank.checking.recomputed import check_of
from subrank.experiments.cost import again, announce, feature_parts
from subrank.pages.evaluation_page import dictionaries_section
from subrank.pages.features_figures import activation_figure
from subrank.pages.features_page import cards_section
from subrank.progress import shown
from subrank.result import Provenance, Result
from subrank.saes import FeatureName, Saes, a_set
from subrank.settings.experiments import FeatureSettings
from subrank.settings.fields import make, takes
from subrank.settings.model_size import fitted

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CHUNK = 256
"""Cards per file."""
SEEN_OFTEN = 16
"""Tokens on which a feature must be active to be drawn for a full card."""


@dataclass(frozen=True, eq=False, repr=False)
class Features(Result):
    """Cards: what features respond to, what they do to the logits, and what their labels are worth."""

    verb: ClassVar[str] = "features"
    cards: tuple[Card, ...]
    """Full cards."""
    neurons: dict[FeatureId, Card]
    """For some of them, the card of the nearest neuron."""
    sites: dict[str, Any]
    """Per site: latents, those that are alive, and the median scores of their token labels, beside control labels."""
    contexts: dict[str, int]
    """How many were read: `training` ones, and `held_out` ones on which labels are scored."""
    quality: SetQuality
    provenance: Provenance
    catalogue: Catalogue | None = field(default=None, repr=False)
    dashboards_of: str | None = field(default=None, repr=False)
    """The name of the text, where dashboards for Neuronpedia are to be written."""

    def title(self) -> str:
        return "Features"

    def __getitem__(self, name: FeatureName) -> Card:
        """The card of a feature; raises `UserError` for one that has none."""
        feature = FeatureId.parse(name) if isinstance(name, str) else name
        for card in self.cards:
            if card.feature == feature:
                return card
        raise UserError(f"no full card for {feature}; there are {', '.join(str(card.feature) for card in self.cards)}")

    def lines(self) -> list[str]:
        alive = ", ".join(f"{site}: {row['alive']} of {row['n_latents']} alive" for site, row in self.sites.items())
        return [alive, *(f"{card.feature}: {card_line(card)}" for card in self.cards)][:10]

    def figures(self) -> "dict[str, Figure]":
        figures = {str(card.feature): activation_figure(card) for card in self.cards}
        return {name: figure for name, figure in figures.items() if figure is not None}

    def body(self) -> Markup:
        return cards_section(self.cards, self.neurons, self.sites) + dictionaries_section(self.quality)

    def to_dict(self) -> dict[str, Any]:
        return {
            "dictionaries": self.quality.to_json(),
            "contexts": self.contexts,
            "sites": self.sites,
            "features": [card.to_json() for card in self.cards],
            "neurons": {str(feature): card.to_json() for feature, card in self.neurons.items()},
        }

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], provenance: Provenance) -> "Features":
        cards = tuple(Card.from_json(card) for card in numbers["features"])
        neurons = {FeatureId.parse(name): Card.from_json(card) for name, card in numbers["neurons"].items()}
        quality = SetQuality.from_json(numbers["dictionaries"])
        return cls(cards, neurons, numbers["sites"], numbers["contexts"], quality, provenance)

    def write(self, folder: Path) -> None:
        """As every result, and the cards of all features, in `features/`."""
        super().write(folder)
        if self.catalogue is not None:
            write_chunks(folder / "features", self.catalogue, self.cards)
            if self.dashboards_of is not None:
                write_dashboards(folder / "neuronpedia", self.catalogue, self.dashboards_of)


@takes(FeatureSettings)
def features(
    model: LanguageModel,
    saes: Saes,
    names: FeatureName | Sequence[FeatureName] = (),
    *,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Features:
    """Cards of all features of a set, full ones of those named (by default of some drawn at random)."""
    names = [names] if isinstance(names, (str, FeatureId)) else names
    chosen = make(FeatureSettings, settings)
    with shown("features", progress, on_progress) as report:
        return run_features(model, a_set(saes), names, chosen, report)


def run_features(
    model: LanguageModel,
    saes: Saes,
    names: Sequence[FeatureName],
    settings: FeatureSettings,
    on_progress: OnProgress = silent,
) -> Features:
    """`features` with its settings made."""
    chosen = chosen_features(saes, names, settings)  # before anything slow
    places = [parse_site(settings.site)] if settings.site else sorted(saes.dictionaries)
    model = saes.on(model)
    settings = fitted(settings, model.block_weights, on_progress)
    contexts = saes.read(model, settings.text)
    training, held = contexts.training[: settings.contexts], contexts.held_out[: max(2, settings.contexts // 4)]
    survey, n_full = saes.survey(model), len(chosen) or settings.full
    n_read = survey.n_unread(training) + survey.n_unread(held)
    parts = feature_parts(model, saes.dictionaries, n_read, n_full * (1 + settings.neurons), saes.text.n_ctx)
    parts = {**parts, **again(model, settings.check, len(training) * saes.text.n_ctx)}
    announce(model, {"": saes.dictionaries}, parts, on_progress)
    quality = saes.measured(model, contexts, settings.text, on_progress)
    seed = settings.seed
    catalogue = read_catalogue(survey, training, held, seed=seed, on_progress=on_progress)
    chosen = chosen or drawn(catalogue, places, settings.full)
    cards = tuple(catalogue.full(chosen, on_progress))
    neurons = neurons_of(catalogue, chosen, on_progress) if settings.neurons else {}
    read = {"training": len(training), "held_out": len(held)}
    known = asdict(settings) | {"names": list(map(str, names)), "set": saes.folder}
    provenance = Provenance.of("features", model, known, dictionaries=saes.dictionaries, text=contexts.digest)
    check = check_of(model, settings.check, on_progress, lambda: recomputed(catalogue, cards, seed))
    dashboards = {"dashboards_of": public_name(saes.text.at(settings.text).source)} if settings.neuronpedia else {}
    scores = site_scores(catalogue)
    return Features(cards, neurons, scores, read, quality, provenance, catalogue, check=check, **dashboards)


def chosen_features(saes: Saes, names: Sequence[FeatureName], settings: FeatureSettings) -> list[FeatureId]:
    """The features that are named; raises `UserError` for one, or a site, that is not there.

    And where something is chosen that is read of features that are drawn alone.
    """
    named = saes.ids(names)
    for name in ("site", "full"):
        if named and name in settings.chosen:
            raise UserError(f"--features and --{name} exclude each other; give one of them")
    if settings.site:
        saes.at(settings.site)
    return named


def card_line(card: Card) -> str:
    """A card in one line: its label, and what that and its rule are worth."""
    if card.label is None or card.rule is None:
        return "no label"
    score, control = card.rule.score, card.rule.control
    text = " ".join(card.rule.text.split())
    return (
        f"{', '.join(card.label.lines)}; rule {text if len(text) < 72 else text[:69] + '...'} (precision "
        f"{score.precision:.2f}, recall {score.recall:.2f}, correlation {score.correlation:.2f}; "
        f"control {control.correlation:.2f})"
    )


def drawn(catalogue: Catalogue, sites: Sequence[Site], n: int, least: int = SEEN_OFTEN) -> list[FeatureId]:
    """`n` features, as evenly over the sites as possible, drawn among those that are active on `least` tokens."""
    waiting = []
    for site in sites:
        often = (catalogue.tally.sites[site].active >= least).nonzero()[:, 0]
        order = torch.randperm(len(often), generator=generator_for(catalogue.seed, "drawn", site))
        waiting.append([FeatureId(site, index) for index in often[order].tolist()])
    longest = max(map(len, waiting))
    rounds = [queue[place] for place in range(longest) for queue in waiting if place < len(queue)]
    return sorted(rounds[:n])


def neurons_of(
    catalogue: Catalogue, features: Sequence[FeatureId], on_progress: OnProgress = silent
) -> dict[FeatureId, Card]:
    """For each feature the card of the coordinate whose axis is closest to its direction."""
    sites = sorted({feature.site for feature in features})
    bases = {site: coordinates(catalogue.dictionaries[site].directions) for site in sites}
    survey = Survey(catalogue.model, bases)
    read = (catalogue.training, catalogue.held)
    neurons = read_catalogue(survey, *read, seed=catalogue.seed, on_progress=on_progress)
    closest = {}
    for feature in features:
        direction = catalogue.dictionaries[feature.site].directions[feature.index]
        closest[feature] = FeatureId(feature.site, int((bases[feature.site].directions @ direction).argmax()))
    alive = sorted({n for n in closest.values() if neurons.tally.sites[n.site].active[n.index]})
    cards = {card.feature: card for card in neurons.full(alive, on_progress, {})} if alive else {}
    return {feature: cards[neuron] for feature, neuron in closest.items() if neuron in cards}


def site_scores(catalogue: Catalogue) -> dict[str, Any]:
    """Per site: latents, those that are alive, and the median scores of their token labels and of control labels."""
    rows = {}
    for site in sorted(catalogue.dictionaries):
        alive = catalogue.alive(site)
        medians = {
            name: {
                number: getattr(scores[site], number)[alive].median().item() if alive else 0.0
                for number in ("precision", "recall", "correlation")
            }
            for name, scores in (("tokens_label", catalogue.scores), ("control", catalogue.controls))
        }
        rows[str(site)] = {"n_latents": len(catalogue.dictionaries[site].directions), "alive": len(alive)} | medians
    return rows


def write_chunks(folder: Path, catalogue: Catalogue, full: Sequence[Card]) -> None:
    """Every feature's card, the full one where there is one: `SITE/0.json`, ... of `CHUNK` cards, and `index.json`."""
    better, sites = {card.feature: card for card in full}, {}
    for site in sorted(catalogue.dictionaries):
        for number, cards in enumerate(_chunks(catalogue.light(site))):
            values = [better.get(card.feature, card).to_json() for card in cards]
            line = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            write_text(folder / str(site) / f"{number}.json", line)
        sites[str(site)] = len(catalogue.dictionaries[site].directions)
    write_json(folder / "index.json", {"chunk": CHUNK, "features": sites, "full": [str(feature) for feature in better]})


def _chunks(cards: Iterator[Card]) -> Iterator[list[Card]]:
    while part := list(islice(cards, CHUNK)):
        yield part
