"""A training run as the options of `subrank train` describe it."""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subrank.cli.arguments import sites_of

if TYPE_CHECKING:
    from sae_core.model.language_model import LanguageModel
    from sae_core.training.recipe import Recipe
    from sae_core.training.run import Run

_BESIDE = {"model", "out", "device", "cache", "config", "save_every", "resume", "run", "verb", "parser"}
"""Options that say where or how often, not what."""


def described(options: argparse.Namespace) -> list[str]:
    """The names of the options on the command line that describe the run."""
    return sorted(options.parser.given - _BESIDE)


def flag(name: str) -> str:
    """An option as it is typed."""
    return "-k" if name == "k" else "--" + name.replace("_", "-")


def run_of(options: argparse.Namespace, model: "LanguageModel") -> "Run":
    """The run that the options describe: a member for each combination of those with several values."""
    from sae_core.data.text import Text
    from sae_core.training.config import TrainConfig
    from sae_core.training.run import Run

    n_ctx = min(128, model.n_ctx) if options.context is None else options.context
    text = Text(options.text, n_ctx, options.prepend_bos, options.tokens, options.column)
    members = []
    for expansion, recipe, seed in product(options.expansion, _recipes(options), _seeds(options)):
        members.append(
            TrainConfig(
                recipe,
                expansion,
                options.tokens,
                options.batch,
                options.lr,
                dead_after=options.dead_after,
                clip=options.clip,
                bfloat16=options.bfloat16,
                kl=options.kl,
                seed=seed,
            )
        )
    return Run(model.name, text, tuple(options.sites), tuple(members), _memory(options))


def check_same(options: argparse.Namespace, model: "LanguageModel", run: "Run", out: Path) -> None:
    """Raise `UserError`, naming them, where options on the command line describe another run than this one."""
    from sae_core.data.text import Text
    from sae_core.errors import UserError

    asked = vars(options) | {
        "text": Text(options.text, 2, True).source,
        "sites": map(str, sites_of(model, options.sites)),
        "memory": _memory(options) / 2**30,
        "seed": _seeds(options),
    }
    has, other = _values(run, model), []
    for name in described(options):
        want = asked[name] if isinstance(asked[name], (list, map)) else [asked[name]]
        want = list(dict.fromkeys(want))
        if has[name] and set(want) != set(has[name]):
            other.append((flag(name), want, has[name]))
    if other:
        asked_for, begun = (
            ", ".join(f"{row[0]} {' '.join(map(str, row[which]))}" for row in other) for which in (1, 2)
        )
        raise UserError(
            f"the run in {out} was begun with {begun}, not {asked_for}; leave that out, or start anew elsewhere"
        )


def _values(run: "Run", model: "LanguageModel") -> dict[str, list[Any]]:
    """The values by which each option would describe a run; none for one that no member has a use for."""
    from sae_core.training.config import recipe_to_json

    recipes = [recipe_to_json(member.recipe) for member in run.members]
    seeds = [member.seed for member in run.members]
    found = {
        "text": [run.text.source],
        "column": [run.text.column],
        "context": [run.text.n_ctx],
        "prepend_bos": [run.text.prepend_bos],
        "sites": [str(site) for site in sites_of(model, run.sites)],
        "memory": [run.memory / 2**30],
        "kind": ["tied" if recipe.get("tied") else recipe["kind"] for recipe in recipes],
        "seed": seeds,
        "seeds": seeds,
    }
    for name in ("k", "l1", "multi"):
        found[name] = [recipe[name] for recipe in recipes if name in recipe]
    for name in ("expansion", "tokens", "batch", "lr", "clip", "dead_after", "bfloat16", "kl"):
        found[name] = [getattr(member, name) for member in run.members]
    return {name: list(dict.fromkeys(values)) for name, values in found.items()}


def _seeds(options: argparse.Namespace) -> list[int]:
    return options.seeds or [options.seed]


def _memory(options: argparse.Namespace) -> int:
    """--memory in bytes."""
    from sae_core import checks

    checks.positive("--memory", options.memory)
    return int(options.memory * 2**30)


def _recipes(options: argparse.Namespace) -> "Iterator[Recipe]":
    """The architectures asked for, each with every value of the option that sets its sparsity."""
    from sae_core.training.penalty_recipes import Gated, JumpReLU, ReLU
    from sae_core.training.topk_recipes import BatchTopK, Matryoshka, TopK

    by_k = {"batchtopk": BatchTopK, "matryoshka": Matryoshka, "jumprelu": JumpReLU}
    for kind in options.kind:
        if kind == "topk":
            yield from (TopK(k, multi=options.multi) for k in options.k)
        elif kind in by_k:
            yield from (by_k[kind](k) for k in options.k)
        elif kind == "gated":
            yield from (Gated(l1) for l1 in options.l1)
        else:
            yield from (ReLU(l1, tied=kind == "tied") for l1 in options.l1)
