"""`subrank ioi`: how many features carry the indirect object from one prompt into another."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from subrank.cli.arguments import at_least, model_of, sites_of, writable
from subrank.cli.evaluate import check_one_model, names_of, text_of
from subrank.cli.parsers import Verbs
from subrank.cli.results import save_result
from subrank.cli.sets import prepared
from subrank.cli.terminal import report, say

if TYPE_CHECKING:
    from editing.ioi.study import IOIConfig, IOIResult, IOIStudy
    from editing.set_quality import SetQuality
    from editing.tasks.pairs import Place
    from sae_core.model.language_model import LanguageModel
    from sae_core.storage import DictionarySet


def add(verbs: Verbs) -> None:
    """Declare `subrank ioi`."""
    text = "IOI patching: how many features carry the indirect object"
    parser = verbs.add("ioi", run, text, "DIR/ioi, or ./ioi where there are several DIR")
    parser.add_argument(
        "dirs", metavar="DIR", nargs="+", type=Path, help="folder of a set, or of a sweep: all its sets"
    )
    parser.add_argument("--model", default=None, help="where the model is now, if not where it was")
    parser.add_argument("--text", default=None, help="another text than the one trained on")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--site", default=None, help="where to patch; by default chosen on selection prompts")
    where.add_argument(
        "--sites", nargs="+", default=None, metavar="SITE", help="one after the other: sites, streams, or 'all'"
    )
    where.add_argument(
        "--jointly", nargs="+", default=None, metavar="SITE", help="sites or streams, or 'all', in one experiment"
    )
    parser.add_argument(
        "--positions",
        nargs="+",
        default=["all"],
        metavar="WHERE",
        help="all, or any of IO, S1, S2, END, and places counted from the end: -1 is the last",
    )
    parser.add_argument("--corruption", default="both", help="both (io and swap), or one of io, swap, abc")
    parser.add_argument(
        "--prompts", type=int, default=None, help="test prompts (default: 96); a third as many for the selection"
    )
    ways = "ways to choose features: greedy, attribution, threshold, random (default: all)"
    parser.add_argument("--selectors", nargs="+", default=None, metavar="HOW", help=ways)
    others = (
        "what to compare with: pca, nonnegative_pca, neurons, random_basis, ica (default: all but ica, which is slow)"
    )
    parser.add_argument("--baselines", nargs="*", default=None, metavar="WHAT", help=others)
    thresholds = "values of tau of the threshold pruning (default: 16); the source took 50"
    parser.add_argument("--thresholds", type=int, default=None, help=thresholds)


def run(options: argparse.Namespace) -> None:
    """`subrank ioi`."""
    from sae_core.storage import load_set, sets_in

    folders = list(dict.fromkeys(folder.resolve() for given in options.dirs for folder in sets_in(given)))
    sets = {name: load_set(folder) for name, folder in zip(names_of(folders), folders, strict=True)}
    check_one_model(sets)
    out = writable(options.out or (options.dirs[0] / "ioi" if len(options.dirs) == 1 else Path("ioi")))
    config = ioi_config(options, next(iter(sets.values())))
    kinds, positions = _corruptions(options.corruption), _positions(options.positions)
    model = model_of(options.model or next(iter(sets.values())).model, options.device)
    source = text_of(sets, options.text).source
    if len(sets) == 1:
        sets = {"dictionary": next(iter(sets.values()))}
    contexts, measured = None, {}
    for (name, one), folder in zip(sets.items(), folders, strict=True):
        read, measured[name] = prepared(one, folder, model, source if source != one.text.source else options.text)
        contexts = read if contexts is None else contexts
    places = _places(options, model, sets)
    study = _study(model, sets, contexts, config)
    if options.sites:
        study.baselines(places)  # of all sites in one pass
    results = [
        study.run(kind, site=place, positions=positions, on_progress=report) for kind in kinds for place in places
    ]
    _write(out, study, results, measured, argv=vars(options) | {"dirs": [str(folder) for folder in folders]})
    say(f"results: {out}")


def ioi_config(options: argparse.Namespace, dictionaries: "DictionarySet") -> "IOIConfig":
    """How much of IOI to run: what is asked for, and else what `IOIConfig` has by default."""
    from editing.ioi.study import IOIConfig

    given = {name: value for name, value in vars(options).items() if value is not None}
    for name, least in (("prompts", 2), ("thresholds", 1)):
        at_least(f"--{name}", given.get(name, least), least)
    config = IOIConfig(seed=options.seed, prepend_bos=dictionaries.text.prepend_bos)
    config = replace(config, **{name: tuple(given[name]) for name in ("selectors", "baselines") if name in given})
    if "thresholds" in given:
        config = replace(config, selection=replace(config.selection, n_thresholds=given["thresholds"]))
    if "prompts" in given:
        few = max(4, given["prompts"] // 3)
        config = replace(config, test_prompts=given["prompts"], selection_prompts=few)
    return config


def ioi_into(out: Path, model, dictionaries, contexts, measured, kinds, config, *, argv, assets=None):
    """Run IOI on one set, at the site that is best, and write `result.json` and `ioi.html`."""
    study = _study(model, {"dictionary": dictionaries}, contexts, config)
    results = [study.run(kind, on_progress=report) for kind in kinds]
    _write(out, study, results, {"dictionary": measured}, argv=argv, assets=assets)
    return results


def _study(model: "LanguageModel", sets: "Mapping[str, DictionarySet]", contexts, config: "IOIConfig") -> "IOIStudy":
    """The experiments; baselines see what the dictionaries saw."""
    from editing.ioi.study import IOIStudy
    from sae_core.data.text import held_out

    return IOIStudy(model, {name: one.dictionaries for name, one in sets.items()}, held_out(contexts)[0][:256], config)


def _write(
    out: Path,
    study: "IOIStudy",
    results: "Sequence[IOIResult]",
    measured: "Mapping[str, SetQuality]",
    *,
    argv,
    assets=None,
) -> None:
    """Say what was found, and write `result.json` and `ioi.html`."""
    from subrank.pages.evaluation_page import dictionaries_section
    from subrank.pages.ioi_page import ioi_section
    from subrank.pages.page import titled, write_page

    for result in results:
        say(f"  {result.corruption}: {result.own.sentence()}")
        for sentence in result.sentences():
            say(f"  {result.corruption} at {result.site}: {sentence}")
    labels = _labels(study, results)
    numbers = {
        "own_score": {r.corruption: asdict(r.own) for r in results},
        "dictionaries": _alone({name: one.to_json() for name, one in measured.items()}),
        "labels": _alone(labels),
        "ioi": [r.to_json() for r in results],
    }
    save_result(out, numbers, study.model, argv)
    body = ioi_section(results, labels)
    for name, one in measured.items():
        body += titled(name if len(measured) > 1 else "The dictionaries", dictionaries_section(one))
    write_page(out / "ioi.html", "IOI patching", body, assets=assets)


def _alone(by_set: dict[str, dict]) -> dict:
    """What is known of each set; of a single one without its name."""
    return by_set if len(by_set) > 1 else next(iter(by_set.values()))


def _labels(study: "IOIStudy", results: "Sequence[IOIResult]") -> dict[str, dict[str, str]]:
    """The tokens that the first 64 features of each curve respond to, by set and name of the feature."""
    from circuits.features.atlas import survey
    from sae_core.sites import FeatureId

    found = {}
    for name, dictionaries in study.sets.items():
        named = {one for r in results for curve in r.curves if curve.name == name for one in curve.order[:64]}
        features = sorted(map(FeatureId.parse, named))
        used = {site: dictionaries[site] for site in {feature.site for feature in features}}
        atlas = survey(study.model, used, study.contexts, top=16)
        texts = {str(one): " ".join(atlas.responds_to(one, study.model)) for one in features}
        found[name] = {one: text for one, text in texts.items() if text}
    return found


def _corruptions(text: str) -> list:
    from editing.tasks.ioi import Corruption
    from sae_core.errors import UserError

    if text == "both":
        return [Corruption.IO, Corruption.SWAP]
    if text not in set(Corruption):
        raise UserError(f"no corruption {text!r}; there are both, {', '.join(Corruption)}")
    return [Corruption(text)]


def _positions(given: Sequence[str]) -> "tuple[Place, ...] | None":
    """None for all; else roles, and places counted from the end."""
    from editing.tasks.ioi import Role
    from sae_core.errors import UserError

    if list(given) == ["all"]:
        return None
    found = [text.upper() if text.upper() in set(Role) else text for text in given]
    for text in {*found} - {*Role}:
        if not re.fullmatch(r"-[1-9]\d*", text):
            where = f"all, {', '.join(Role)}, or numbers like -1 -2, counted from the end"
            raise UserError(f"--positions {' '.join(given)}: {text} is none of {where}")
    return tuple(text if text in set(Role) else int(text) for text in found)


def _places(options: argparse.Namespace, model: "LanguageModel", sets: "Mapping[str, DictionarySet]") -> tuple:
    """The sites asked for, one to an experiment, or all for one; (None,) where one is to be chosen."""
    given = options.sites or options.jointly or ([options.site] if options.site else [])
    first, *others = sets.values()
    shared = [site for site in first.dictionaries if all(site in one.dictionaries for one in others)]
    sites = tuple(shared) if given == ["all"] else sites_of(model, given)
    return (sites,) if options.jointly else sites or (None,)
