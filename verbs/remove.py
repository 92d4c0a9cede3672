"""`subrank remove`: a capability taken away, and what else changed."""

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
    from editing.removal import RemovalConfig, RemovalResult
    from sae_core.storage import DictionarySet


def add(verbs: Verbs) -> None:
    """Declare `subrank remove`."""
    parser = verbs.add_on_set("remove", run, "remove a capability and measure what else changed")
    parser.add_argument("--task", choices=("pronouns",), default="pronouns")
    parser.add_argument("--site", default=None, help="where to edit; by default chosen on selection prompts")
    parser.add_argument("--prompts", type=int, default=256, help="test prompts; half as many to choose the edit")


def run(options: argparse.Namespace) -> None:
    """`subrank remove`."""
    out, model, dictionaries, contexts, measured = open_set(options)
    config = removal_config(options, dictionaries)
    removal_into(out, model, dictionaries, contexts, measured, config, site=site_of(options.site), argv=vars(options))
    say(f"results: {out}")


def removal_config(options: argparse.Namespace, dictionaries: "DictionarySet") -> "RemovalConfig":
    """How much of the removal to run."""
    from editing.removal import RemovalConfig

    config = RemovalConfig(seed=options.seed, prepend_bos=dictionaries.text.prepend_bos)
    if options.prompts is None:
        return config
    at_least("--prompts", options.prompts, 8)
    return replace(config, test_prompts=options.prompts, selection_prompts=max(8, options.prompts // 2))


def removal_into(
    out: Path, model, dictionaries, contexts, measured, config, *, site=None, argv, assets=None
) -> "RemovalResult":
    """Remove pronoun prediction; write `result.json` and `remove.html`."""
    from circuits.page import dictionaries_section, removal_section, write_page
    from editing.removal import remove_pronouns
    from sae_core.text import held_out

    result = last_of(remove_pronouns(model, dictionaries.dictionaries, held_out(contexts)[1], config, site=site))
    numbers = {"own_score": asdict(result.own), "dictionaries": measured.to_json(), "removal": asdict(result)}
    numbers["removal"]["sentence"] = result.sentence()
    save_result(out, numbers, model, argv)
    body = removal_section(result) + dictionaries_section(measured)
    write_page(out / "remove.html", "Removing pronoun prediction", body, assets=assets)
    say(result.sentence())
    return result
