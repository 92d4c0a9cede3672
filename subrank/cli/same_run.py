"""Whether options on the command line, and this machine, are those of the training run that is to go on."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sae_core.data.text import Text
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.training.config import recipe_to_json
from sae_core.training.loop import in_bfloat16
from sae_core.training.run import Run
from sae_core.training.state import TrainState
from subrank.cli.terminal import say
from subrank.settings.fields import flag_of
from subrank.settings.train import TrainSettings
from subrank.sites import sites_of


def check_same(stated: Mapping[str, Any], model: LanguageModel, run: Run, out: Path) -> None:
    """Raise `UserError`, naming them, where the `stated` options describe another run than the one begun in `out`."""
    begun, differences = _values(run, model), []
    for name, value in sorted(stated.items()):
        wanted = _unique(value if isinstance(value, (list, tuple)) else [value])
        if name == "text":
            wanted = [Text(str(value), 2, True).source]
        elif name == "sites":
            wanted = [str(site) for site in sites_of(model, value)]
        if set(wanted) != set(begun[name]):
            differences.append((_flag(name), wanted, begun[name]))
    if differences:
        wanted_now, was = (
            ", ".join(f"{row[0]} {' '.join(map(str, row[which]))}" for row in differences) for which in (1, 2)
        )
        raise UserError(
            f"the run in {out} was begun with {was}, not {wanted_now}; leave that out, or start anew elsewhere"
        )


def flags(names: Iterable[str]) -> str:
    """Options as they are typed, listed."""
    return ", ".join(map(_flag, sorted(names)))


def _flag(name: str) -> str:
    return next((flag_of(each) for each in fields(TrainSettings) if each.name == name), "--" + name)


def _values(run: Run, model: LanguageModel) -> dict[str, list[Any]]:
    """The values by which each option would describe a run."""
    recipes = [recipe_to_json(member.recipe) for member in run.members]
    seeds = [member.seed for member in run.members]
    values = {
        "text": [run.text.source],
        "column": [run.text.column],
        "context": [run.text.n_ctx],
        "text_tokens": [run.text.max_tokens],
        "bos": [run.text.bos_text(model)],
        "chat": [run.text.chat],
        "pack": [run.text.pack],
        "exclude": list(run.text.exclude) or ["nothing"],
        "sites": [str(site) for site in sites_of(model, run.sites)],
        "memory": [run.memory / 2**30],
        "outliers": [run.outliers],
        "quick": [run.quick],
        "kind": ["tied" if recipe.get("tied") else recipe["kind"] for recipe in recipes],
        "seed": seeds,
        "seeds": seeds,
    }
    for name in ("k", "l1", "multi"):
        # no member may have a use for it
        values[name] = [recipe[name] for recipe in recipes if name in recipe] or ["nothing"]
    for name in ("expansion", "tokens", "batch", "lr", "clip", "dead_after", "bfloat16", "kl"):
        values[name] = [getattr(member, name) for member in run.members]
    return {name: _unique(each) for name, each in values.items()}


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def say_precision(state: TrainState) -> None:
    """Say where a resumed run multiplies in another precision than a new one would here."""
    for member in state.members:
        weight = next(iter(member.sites.values())).sae.W_dec
        if member.bfloat16 != in_bfloat16(member.config, weight):
            precision = "bfloat16" if member.bfloat16 else "float32"
            say(f"{member.name} goes on in {precision}, in which it began; here it would have begun in the other")
