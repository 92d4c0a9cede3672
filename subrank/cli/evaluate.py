"""`subrank evaluate`: every measurement of one or several sets of dictionaries of one model."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from subrank.cli.arguments import at_least, model_of, writable
from subrank.cli.parsers import Verbs
from subrank.cli.results import save_result
from subrank.cli.terminal import say

if TYPE_CHECKING:
    from sae_core.data.text import Text
    from sae_core.storage import DictionarySet


def add(verbs: Verbs) -> None:
    """Declare `subrank evaluate`."""
    text = "measure one or several sets of dictionaries, and how alike they are"
    parser = verbs.add("evaluate", run, text, "DIR/evaluate, or ./evaluation where there are several DIR")
    parser.add_argument(
        "dirs", metavar="DIR", nargs="+", type=Path, help="folder of a set, or of a sweep: all its sets"
    )
    parser.add_argument("--model", default=None, help="where the model is now, if not where it was")
    parser.add_argument("--text", default=None, help="another text than the one trained on")
    parser.add_argument("--contexts", type=int, default=256, help="contexts to measure on, at most; held-out ones")
    parser.add_argument("--spliced", type=int, default=64, help="of them, contexts to splice dictionaries into")


def run(options: argparse.Namespace) -> None:
    """`subrank evaluate`."""
    import torch

    from editing.loss_recovered import splice_reports
    from editing.set_evaluation import evaluation_of
    from sae_core.data.text import held_out
    from sae_core.evaluation.reconstruction import profiles
    from sae_core.evaluation.similarity import compare
    from sae_core.files import write_tensors
    from sae_core.storage import load_set, sets_in
    from subrank.pages.evaluation_page import evaluation_page
    from subrank.pages.page import write_page

    at_least("--contexts", options.contexts, 1)
    at_least("--spliced", options.spliced, 1)
    folders = list(dict.fromkeys(folder.resolve() for given in options.dirs for folder in sets_in(given)))
    sets = {name: load_set(folder) for name, folder in zip(names_of(folders), folders, strict=True)}
    check_one_model(sets)
    alone = len(options.dirs) == 1
    out = writable(options.out or (options.dirs[0] / "evaluate" if alone else Path("evaluation")))
    model = model_of(options.model or next(iter(sets.values())).model, options.device)
    dictionaries = {}
    for name, found in sets.items():
        found.check(model)
        dictionaries[name] = {site: sae.to(model.device) for site, sae in found.dictionaries.items()}
    text = text_of(sets, options.text)
    say(f"reading {text.source}")
    contexts = held_out(text.contexts(model))[1][: options.contexts]
    n = sum(map(len, dictionaries.values()))
    say(f"measuring {n} dictionaries on {len(contexts)} contexts of {text.n_ctx} tokens")
    measured = profiles(model, dictionaries, contexts)
    few = contexts[: options.spliced]
    say(f"splicing each dictionary into the model on {len(few)} of them")
    means = {site: profile.mean for own in measured.values() for site, profile in own.items()}
    spliced = splice_reports(model, dictionaries, means, few)
    if len(sets) > 1:
        say("comparing the sets")
    alike = compare(dictionaries, generator=torch.Generator().manual_seed(options.seed))
    counts = {"contexts": len(contexts), "contexts_spliced": len(few)}
    evaluation = evaluation_of(measured, spliced, alike, text=text.source, **counts)
    for line in evaluation.lines():
        say("  " + line)
    densities = {f"{name}/{site}": one.density for name, own in measured.items() for site, one in own.items()}
    write_tensors(out / "densities.safetensors", densities)
    settings = vars(options) | {"dirs": [str(folder) for folder in folders]}
    save_result(out, evaluation.to_json(), model, settings)
    write_page(out / "evaluate.html", f"Dictionaries of {model.name}", evaluation_page(evaluation))
    say(f"results: {out / 'evaluate.html'}")


def names_of(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as tell all of them apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("two folders are one")


def check_one_model(sets: "Mapping[str, DictionarySet]") -> None:
    """Raise `UserError` unless all sets are of the same model."""
    from sae_core.errors import UserError

    first, *others = sets
    for other in others:
        if sets[other].fingerprint != sets[first].fingerprint:
            raise UserError(
                f"{other} belongs to another model ({sets[other].model}) than {first} ({sets[first].model}); "
                "evaluate them apart"
            )


def text_of(sets: "Mapping[str, DictionarySet]", source: str | None) -> "Text":
    """The text to measure on, of which the held-out part was trained on by none of the sets that share it.

    That is the shortest: held-out contexts are the first tenth. Sets of another text than the first one's are named.
    """
    first = next(iter(sets.values())).text
    sharing = {name: one.text for name, one in sets.items() if replace(one.text, max_tokens=first.max_tokens) == first}
    if source:
        return replace(first, source=source)
    for name in sets.keys() - sharing.keys():
        say(f"note: {name} was trained on other contexts ({sets[name].text.source}, {sets[name].text.n_ctx} tokens)")
    return min(sharing.values(), key=lambda text: text.max_tokens)
