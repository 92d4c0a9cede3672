"""`sr.ioi`, `subrank ioi`: how many features carry the indirect object from one prompt into another."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from markupsafe import Markup

from circuits.features.atlas import atlas_of
from circuits.features.labelling import Labeller
from editing.ioi.config import IOIConfig
from editing.ioi.feature_selection import Selector
from editing.ioi.figure import ioi_figure
from editing.ioi.result import IOIResult
from editing.ioi.study import IOIStudy
from editing.set_quality import SetQuality
from editing.tasks.ioi import Corruption, Role
from editing.tasks.pairs import Place
from sae_core.codec import from_plain, to_plain
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.progress import OnProgress, silent
from sae_core.sites import FeatureId, Site
from subrank.checking.ioi import recomputed
from subrank.checking.recomputed import check_of
from subrank.experiments.cost import announce, ioi_parts
from subrank.pages.evaluation_page import dictionaries_section
from subrank.pages.ioi_page import ioi_section
from subrank.pages.page import titled
from subrank.progress import shown
from subrank.result import Provenance, Result
from subrank.saes import Saes, by_name, folders_of, text_of
from subrank.settings.experiments import IOISettings
from subrank.settings.fields import make, takes
from subrank.settings.model_size import fitted
from subrank.sites import sites_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

GREEDY_BELOW = 2_000_000
"""Weights of the blocks, about, below which greedy search fits the time, and features are chosen by it, too."""
LABELLED = 64
"""Features of a curve, from its beginning, that are labelled."""


@dataclass(frozen=True, eq=False, repr=False)
class IOI(Result):
    """KL(clean || patched) against the number of patched features and against edit size, beside the baselines."""

    verb: ClassVar[str] = "ioi"
    results: tuple[IOIResult, ...]
    """One per corruption and site."""
    quality: dict[str, SetQuality]
    """Of every set, by its name."""
    labels: dict[str, dict[str, str]]
    """The labels of features in short, by set and name of the feature."""
    provenance: Provenance
    notes: tuple[str, ...] = ()
    """What was left out of the task for this model, and why."""

    def title(self) -> str:
        return "IOI patching"

    def lines(self) -> list[str]:
        return self.sentences()[:10]

    def sentences(self) -> list[str]:
        """The finding in words in full: the model's own scores, and what each experiment shows."""
        scores = dict.fromkeys(f"{r.corruption}: {r.own.sentence()}" for r in self.results)
        shown_by = (f"{r.corruption} at {r.site}: {text}" for r in self.results for text in r.sentences())
        return [*scores, *self.notes, *shown_by]

    def figures(self) -> "dict[str, Figure]":
        return {f"{r.corruption} at {r.site}": ioi_figure(r, self.labels) for r in self.results}

    def section(self) -> Markup:
        """The page without the dictionaries."""
        return ioi_section(self.results, self.labels)

    def body(self) -> Markup:
        sections = {name: dictionaries_section(quality) for name, quality in self.quality.items()}
        titles = [titled(name, section) for name, section in sections.items()]
        return self.section() + Markup().join(titles if len(titles) > 1 else sections.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "own_score": {r.corruption: to_plain(r.own) for r in self.results},
            "dictionaries": _alone({name: quality.to_json() for name, quality in self.quality.items()}),
            "labels": _alone(self.labels),
            "ioi": [r.to_json() for r in self.results],
        } | ({"notes": list(self.notes)} if self.notes else {})

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any], provenance: Provenance) -> "IOI":
        results = tuple(from_plain(IOIResult, each) for each in numbers["ioi"])
        names = list(results[0].floors)
        several = len(names) > 1
        quality = numbers["dictionaries"] if several else {names[0]: numbers["dictionaries"]}
        labels = numbers["labels"] if several else {names[0]: numbers["labels"]}
        return cls(
            results,
            {name: SetQuality.from_json(value) for name, value in quality.items()},
            labels,
            provenance,
            tuple(numbers.get("notes", ())),
        )


@takes(IOISettings)
def ioi(
    model: LanguageModel,
    saes: Saes | Mapping[str, Saes],
    *,
    progress: bool = True,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> IOI:
    """The IOI patching experiment (Cunningham et al. 2023) on one set of dictionaries, or on several by name.

    x' = x_bar + sum_{i in F} (c_i - c_bar_i) f_i for growing sets F of features; features are chosen on other prompts
    than the curves are measured on.
    """
    sets, chosen = by_name(saes), make(IOISettings, settings)
    with shown("ioi", progress, on_progress) as report:
        return run_ioi(model, sets, chosen, report)


def run_ioi(
    model: LanguageModel, sets: Mapping[str, Saes], settings: IOISettings, on_progress: OnProgress = silent
) -> IOI:
    """`ioi` of sets by name."""
    model, *_ = [saes.on(model) for saes in sets.values()]
    selectors = selectors_of(settings, model)
    settings = fitted(settings, model.block_weights, on_progress)
    config, positions = ioi_config(settings, next(iter(sets.values()))), positions_of(settings.positions)
    config = replace(config, selectors=selectors)
    places = _places(settings, model, sets)
    text, _ = text_of(sets, settings.text)
    contexts = text.read(model)
    kinds = (Corruption.IO, Corruption.SWAP) if settings.corruption == "both" else (Corruption(settings.corruption),)
    dictionaries = {name: saes.dictionaries for name, saes in sets.items()}
    study = IOIStudy(model, dictionaries, contexts.training[: settings.contexts], config)
    experiments = [_chosen_from(place, dictionaries) for place in places] * len(kinds)
    announce(model, dictionaries, ioi_parts(model, dictionaries, config, study.contexts, experiments), on_progress)
    quality = {}
    for name, saes in sets.items():
        other = text.source if text.source != saes.text.source else settings.text
        quality[name] = saes.measured(model, saes.read(model, other), other, on_progress)
    if settings.sites:
        study.baselines.at(places)  # of all sites in one pass
    results = tuple(
        study.run(kind, site=place, positions=positions, on_progress=on_progress) for kind in kinds for place in places
    )
    known = asdict(settings) | folders_of(sets)
    provenance = Provenance.of("ioi", model, known, dictionaries=dictionaries, text=contexts.digest)
    labels = _labels(study, sets, results)
    check = check_of(model, settings.check, on_progress, lambda: recomputed(study, results, settings.seed))
    return IOI(results, quality, labels, provenance, study.task.notes, check=check)


def selectors_of(settings: IOISettings, model: LanguageModel) -> tuple[Selector, ...]:
    """How features are chosen: as set, or else in the ways that fit the model's size.

    Raises `UserError` where something is chosen for a greedy search that a model of this size does not have by default.
    """
    if settings.selectors is not None:
        return tuple(map(Selector, settings.selectors))
    if model.block_weights < GREEDY_BELOW:
        return (Selector.ATTRIBUTION, Selector.GREEDY, Selector.RANDOM)
    for name in ("shortlist", "features"):
        if name in settings.chosen:
            raise UserError(
                f"--{name} is read by greedy search, for which {model.name} is too large by default; "
                f"give --selectors greedy as well, or leave --{name} out"
            )
    return (Selector.ATTRIBUTION, Selector.RANDOM)


def ioi_config(settings: IOISettings, saes: Saes) -> IOIConfig:
    """How much to run: what is set, and else what `IOIConfig` has by default."""
    config = IOIConfig(seed=settings.seed, prepend_bos=bool(saes.text.prepend_bos))
    chosen = {name: getattr(settings, name) for name in ("selectors", "baselines")}
    config = replace(config, **{name: value for name, value in chosen.items() if value is not None})
    search = replace(config.selection, n_greedy=settings.features, shortlist=settings.shortlist)
    if settings.thresholds is not None:
        search = replace(search, n_thresholds=settings.thresholds)
    n_selection = max(4, settings.prompts // 3)
    return replace(config, selection=search, test_prompts=settings.prompts, selection_prompts=n_selection)


def _alone(by_set: dict[str, Any]) -> Any:
    """What is known of each set; of a single one without its name."""
    return by_set if len(by_set) > 1 else next(iter(by_set.values()))


def _labels(study: IOIStudy, sets: Mapping[str, Saes], results: Sequence[IOIResult]) -> dict[str, dict[str, str]]:
    """The labels of the first features of each curve, by set and name of the feature."""
    labels = {}
    for name, saes in sets.items():
        curves = [curve for result in results for curve in result.curves if curve.name == name]
        features = sorted(map(FeatureId.parse, {text for curve in curves for text in curve.order[:LABELLED]}))
        used = {feature.site for feature in features}
        atlas = atlas_of(saes.survey(study.model), study.contexts, sites=used, top=16)
        labels[name] = {str(feature): label.short for feature, label in Labeller(atlas).labels(features).items()}
    return labels


def positions_of(names: Sequence[str]) -> tuple[Place, ...] | None:
    """None for all; else roles, and places counted from the end."""
    if list(names) == ["all"]:
        return None
    places: list[Place] = []
    for name in names:
        if name.upper() in set(Role):
            places.append(Role(name.upper()))
        elif re.fullmatch(r"-[1-9]\d*", name):
            places.append(int(name))
        else:
            where = f"all, {', '.join(Role)}, or numbers like -1 -2, counted from the end"
            raise UserError(f"--positions {' '.join(names)}: {name} is none of {where}")
    return tuple(places)


def _places(settings: IOISettings, model: LanguageModel, sets: Mapping[str, Saes]) -> tuple:
    """The sites that are named, one to an experiment, or all for one; (None,) where one is to be chosen."""
    names = settings.sites or settings.jointly or ([settings.site] if settings.site else [])
    first, *others = sets.values()
    shared = [site for site in first.dictionaries if all(site in other.dictionaries for other in others)]
    sites: tuple[Site, ...] = tuple(shared) if list(names) == ["all"] else sites_of(model, names)
    if names and not sites:
        raise UserError("the sets have no site in common; use them apart")
    for saes in sets.values():
        for site in sites:
            saes.at(site)
    return (sites,) if settings.jointly else sites or (None,)


def _chosen_from(place: Site | tuple[Site, ...] | None, dictionaries: Mapping[str, Mapping[Site, Any]]) -> list[Site]:
    """The sites at which one experiment looks."""
    if place is None:
        return list(next(iter(dictionaries.values())))
    return [place] if isinstance(place, Site) else list(place)
