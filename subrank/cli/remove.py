"""`subrank remove`: a capability taken away, and what else changed."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from subrank.cli.arguments import at_least, site_of
from subrank.cli.parsers import Verbs
from subrank.cli.results import save_result
from subrank.cli.sets import open_set
from subrank.cli.terminal import report, say

if TYPE_CHECKING:
    import torch

    from editing.removal.experiment import RemovalConfig, RemovalResult
    from sae_core.model.language_model import LanguageModel
    from sae_core.storage import DictionarySet


def add(verbs: Verbs) -> None:
    """Declare `subrank remove`."""
    parser = verbs.add_on_set("remove", run, "remove a capability and measure what else changed")
    parser.add_argument(
        "--task", default="pronouns", help="pronouns, possessives, brackets, ioi, or a .jsonl file of pairs"
    )
    parser.add_argument("--site", default=None, help="where to edit; by default chosen on selection prompts")
    parser.add_argument("--prompts", type=int, default=256, help="test prompts; half as many to choose the edit")
    parser.add_argument(
        "--budget", type=float, default=0.05, help="nats per token that an edit may cost on the text for choosing it"
    )


def run(options: argparse.Namespace) -> None:
    """`subrank remove`."""
    out, model, dictionaries, contexts, measured = open_set(options)
    config = with_budget(removal_config(options, dictionaries), options.budget)
    where = {"task": options.task, "site": site_of(options.site)}
    removal_into(out, model, dictionaries, contexts, measured, config, **where, argv=vars(options))
    say(f"results: {out}")


def removal_config(options: argparse.Namespace, dictionaries: "DictionarySet") -> "RemovalConfig":
    """How much of the removal to run."""
    from editing.removal.experiment import RemovalConfig

    config = RemovalConfig(seed=options.seed, prepend_bos=dictionaries.text.prepend_bos)
    if options.prompts is None:  # the demo, which has minutes
        few = {"selection_prompts": 96, "greedy_prompts": 48, "test_prompts": 160, "text_contexts": 32}
        few |= {"shortlist": 12, "max_features": 8, "random_draws": 1}
        return replace(config, **few, strengths=(0.0, 0.5, 0.8, 1.0, 1.25))
    at_least("--prompts", options.prompts, 8)
    return replace(config, test_prompts=options.prompts, selection_prompts=max(8, options.prompts // 2))


def with_budget(config: "RemovalConfig", budget: float) -> "RemovalConfig":
    """The same with another budget; raises `UserError` for one that allows nothing."""
    return replace(config, budget=budget)


def removal_into(
    out: Path, model, dictionaries, contexts, measured, config, *, task="pronouns", site=None, argv, assets=None
) -> "RemovalResult":
    """Remove a capability; write `result.json`, `remove.html`, and the edit into `edit/` and `hook/`."""
    from editing.removal.capability import capability_of
    from editing.removal.experiment import remove
    from sae_core.data.text import held_out
    from subrank.pages.evaluation_page import dictionaries_section
    from subrank.pages.page import write_page
    from subrank.pages.removal_page import removal_section

    size = {"n_selection": config.selection_prompts, "n_test": config.test_prompts}
    known = capability_of(task, model, **size, seed=config.seed, prepend_bos=config.prepend_bos)
    text = held_out(contexts)[1]
    result = remove(model, known, dictionaries.dictionaries, text, config, site=site, on_progress=report)
    numbers = {"own_score": asdict(result.own), "dictionaries": measured.to_json(), "removal": result.to_json()}
    save_result(out, numbers, model, argv)
    write_edit(out, model, result, text[: config.text_contexts] if config.prepend_bos else None)
    body = removal_section(result) + dictionaries_section(measured)
    write_page(out / "remove.html", f"Removing {Path(result.task).name}", body, assets=assets)
    for line in (result.sentence(), result.verdict()):
        say(line)
    return result


def write_edit(out: Path, model: "LanguageModel", result: "RemovalResult", text: "torch.Tensor | None") -> None:
    """The edit as `load_edit` reads it, and as a plain PyTorch hook where its site allows one.

    With `text`, contexts that begin with BOS, it spares BOS as the measurement did.
    """
    from editing.interventions.compose import spare_bos
    from editing.interventions.hook_export import export_hook
    from editing.interventions.save import save_edit
    from sae_core.errors import UserError

    edits = list(result.edits) if text is None else spare_bos(model, list(result.edits), text)
    for place, write in (
        ("edit/", lambda: save_edit(edits, out / "edit")),
        ("hook/", lambda: export_hook(edits, model, out / "hook" / "remove_hook.py")),
    ):
        try:
            write()
        except UserError as error:
            say(f"{place} is not written: {error}")
