"""`subrank ioi`: how many features carry the indirect object from one prompt into another."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from verbs.options import at_least, site_of
from verbs.parsers import Verbs
from verbs.results import save_result
from verbs.sets import open_set
from verbs.terminal import last_of, say

if TYPE_CHECKING:
    from editing.ioi import IOIConfig, IOIResult
    from sae_core.storage import DictionarySet


def add(verbs: Verbs) -> None:
    """Declare `subrank ioi`."""
    parser = verbs.add_on_set("ioi", run, "IOI patching: how many features carry the indirect object")
    parser.add_argument("--site", default=None, help="where to patch; by default chosen on selection prompts")
    parser.add_argument("--corruption", choices=("both", "io", "swap"), default="both")
    parser.add_argument("--prompts", type=int, default=96, help="test prompts; a third as many for the selection")


def run(options: argparse.Namespace) -> None:
    """`subrank ioi`."""
    from editing.tasks.ioi import Corruption

    out, model, dictionaries, contexts, measured = open_set(options)
    config = ioi_config(options, dictionaries)
    kinds = list(Corruption) if options.corruption == "both" else [Corruption(options.corruption)]
    ioi_into(
        out, model, dictionaries, contexts, measured, kinds, config, site=site_of(options.site), argv=vars(options)
    )
    say(f"results: {out}")


def ioi_config(options: argparse.Namespace, dictionaries: "DictionarySet") -> "IOIConfig":
    """How much of IOI to run."""
    from editing.ioi import IOIConfig

    config = IOIConfig(seed=options.seed, prepend_bos=dictionaries.text.prepend_bos)
    if options.prompts is None:
        return config
    at_least("--prompts", options.prompts, 2)
    return replace(config, test_prompts=options.prompts, selection_prompts=max(4, options.prompts // 3))


def ioi_into(
    out: Path, model, dictionaries, contexts, measured, kinds, config, *, site=None, argv, assets=None
) -> "list[IOIResult]":
    """Run IOI and write `result.json` and `ioi.html`."""
    from circuits.page import dictionaries_section, ioi_section, write_page
    from editing.ioi import run_ioi
    from sae_core.text import held_out

    fitted = held_out(contexts)[0][:256]  # PCA sees what the dictionaries saw
    results = [last_of(run_ioi(model, dictionaries.dictionaries, fitted, kind, config, site=site)) for kind in kinds]
    numbers = {
        "own_score": {r.corruption: asdict(r.own) for r in results},
        "dictionaries": measured.to_json(),
        "ioi": [asdict(r) for r in results],
    }
    save_result(out, numbers, model, argv)
    write_page(out / "ioi.html", "IOI patching", ioi_section(results) + dictionaries_section(measured), assets=assets)
    return results
