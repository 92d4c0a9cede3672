"""`subrank ioi`: how many features carry the indirect object from one prompt into another."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from verbs.evaluate import check_one_model, names_of, text_of
from verbs.options import at_least, model_of, sites_of, writable
from verbs.parsers import Verbs
from verbs.results import save_result
from verbs.sets import prepared
from verbs.terminal import last_of, say

if TYPE_CHECKING:
    from editing.ioi import IOIConfig, IOIResult
    from sae_core.models import LanguageModel
    from sae_core.storage import DictionarySet

SELECTORS = ("greedy", "attribution", "threshold", "random")
BASELINES = ("pca", "nonnegative_pca", "neurons", "random_basis")


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
    where.add_argument("--sites", nargs="+", default=None, metavar="SITE", help="several sites or streams, or 'all'")
    parser.add_argument(
        "--positions",
        nargs="+",
        default=["all"],
        metavar="WHERE",
        help="all, end, or places counted from the end: -1 is the last",
    )
    parser.add_argument("--corruption", default="both", help="both (io and swap), or one of io, swap, abc")
    parser.add_argument("--prompts", type=int, default=96, help="test prompts; a third as many for the selection")
    parser.add_argument("--selectors", nargs="+", default=SELECTORS, metavar="HOW", help="ways to choose features")
    parser.add_argument(
        "--baselines", nargs="*", default=BASELINES, metavar="WHAT", help="what to compare with; there is 'ica', too"
    )
    parser.add_argument(
        "--thresholds", type=int, default=16, help="values of tau of the threshold pruning; the source took 50"
    )


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
    sites = _sites(options, model, sets)
    settings = vars(options) | {"dirs": [str(folder) for folder in folders]}
    _ioi(out, model, sets, contexts, measured, kinds, config, sites=sites, positions=positions, argv=settings)
    say(f"results: {out}")


def ioi_config(options: argparse.Namespace, dictionaries: "DictionarySet") -> "IOIConfig":
    """How much of IOI to run."""
    from editing.ioi import IOIConfig

    config = IOIConfig(seed=options.seed, prepend_bos=dictionaries.text.prepend_bos)
    if hasattr(options, "selectors"):
        at_least("--thresholds", options.thresholds, 1)
        search = replace(config.selection, n_thresholds=options.thresholds)
        chosen = {"selectors": tuple(options.selectors), "baselines": tuple(options.baselines)}
        config = replace(config, selection=search, **chosen)
    if options.prompts is None:
        return config
    at_least("--prompts", options.prompts, 2)
    return replace(config, test_prompts=options.prompts, selection_prompts=max(4, options.prompts // 3))


def ioi_into(out: Path, model, dictionaries, contexts, measured, kinds, config, *, argv, assets=None):
    """Run IOI on one set, at the site that is best, and write `result.json` and `ioi.html`."""
    sets, quality = {"dictionary": dictionaries}, {"dictionary": measured}
    return _ioi(out, model, sets, contexts, quality, kinds, config, argv=argv, assets=assets)


def _ioi(
    out: Path, model, sets, contexts, measured, kinds, config, *, sites=(None,), positions=None, argv, assets=None
) -> "list[IOIResult]":
    """Run IOI for every corruption at every site, and write `result.json` and `ioi.html`."""
    from circuits.page import dictionaries_section, ioi_section, write_page
    from editing.ioi import run_ioi
    from sae_core.text import held_out

    fitted = held_out(contexts)[0][:256]  # PCA sees what the dictionaries saw
    own = {name: one.dictionaries for name, one in sets.items()}
    results = [
        last_of(run_ioi(model, own, fitted, kind, config, site=site, positions=positions))
        for kind in kinds
        for site in sites
    ]
    for result in results:
        for sentence in result.sentences():
            say(f"  {result.corruption} at {result.site}: {sentence}")
    labels = _labels(model, own, held_out(contexts)[0][:256], results) if len(sets) == 1 else {}
    quality = {name: one.to_json() for name, one in measured.items()}
    numbers = {
        "own_score": {r.corruption: asdict(r.own) for r in results},
        "dictionaries": next(iter(quality.values())) if len(quality) == 1 else quality,
        "labels": labels,
        "ioi": [r.to_json() for r in results],
    }
    save_result(out, numbers, model, argv)
    sections = [
        (f"<h2>{name}</h2>" if len(measured) > 1 else "") + dictionaries_section(one) for name, one in measured.items()
    ]
    write_page(out / "ioi.html", "IOI patching", ioi_section(results, labels) + "".join(sections), assets=assets)
    return results


def _labels(model: "LanguageModel", sets: Mapping, contexts, results: "Sequence[IOIResult]") -> dict[str, str]:
    """The tokens that the first 64 features of each curve respond to, by the name of the feature."""
    from circuits.features import survey
    from sae_core.sites import FeatureId, Site

    (dictionaries,) = sets.values()
    used = {site: dictionaries[site] for site in {Site.parse(result.site) for result in results}}
    atlas = survey(model, used, contexts, top=16)
    named = {name for r in results for curve in r.curves if curve.name in r.floors for name in curve.order[:64]}
    found = {name: " ".join(atlas.responds_to(FeatureId.parse(name), model)) for name in sorted(named)}
    return {name: text for name, text in found.items() if text}


def _corruptions(text: str) -> list:
    from editing.tasks.ioi import Corruption
    from sae_core.errors import UserError

    if text == "both":
        return [Corruption.IO, Corruption.SWAP]
    if text not in set(Corruption):
        raise UserError(f"no corruption {text!r}; there are both, {', '.join(Corruption)}")
    return [Corruption(text)]


def _positions(given: Sequence[str]) -> tuple[int, ...] | None:
    """None for all; else places counted from the end."""
    from sae_core.errors import UserError

    if list(given) == ["all"]:
        return None
    try:
        found = tuple(-1 if text == "end" else int(text) for text in given)
    except ValueError:
        found = (0,)
    if any(place >= 0 for place in found):
        raise UserError(
            f"--positions {' '.join(given)} is none of: all, end, or numbers like -1 -2, counted from the end"
        )
    return found


def _sites(options: argparse.Namespace, model: "LanguageModel", sets: "Mapping[str, DictionarySet]") -> tuple:
    """The sites asked for; (None,) where one is to be chosen."""
    if options.sites == ["all"]:
        first, *others = sets.values()
        return tuple(site for site in first.dictionaries if all(site in one.dictionaries for one in others))
    places = options.sites or ([options.site] if options.site else [])
    return sites_of(model, places) or (None,)
