"""A saved set, opened for work: its model, its contexts and what its dictionaries are worth."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from verbs.options import model_of, writable
from verbs.terminal import say

if TYPE_CHECKING:
    import torch

    from circuits.page import Measured
    from sae_core.models import LanguageModel
    from sae_core.storage import DictionarySet


def open_set(options: argparse.Namespace) -> "tuple[Path, LanguageModel, DictionarySet, torch.Tensor, Measured]":
    """Output folder, model, set, contexts and measured quality for a verb that works on a set."""
    from sae_core.storage import load_set

    dictionaries = load_set(options.dir)
    out = writable(options.out or options.dir / options.verb)
    model = model_of(options.model or dictionaries.model, options.device)
    return out, model, dictionaries, *prepared(dictionaries, options.dir, model, options.text)


def prepared(
    dictionaries: "DictionarySet", folder: Path, model: "LanguageModel", source: str | None = None
) -> "tuple[torch.Tensor, Measured]":
    """Contexts (of another text, if `source` names one) and quality of the set in `folder`.

    Checks the set against `model` and moves its dictionaries to the model's device.
    """
    from circuits.page import Measured
    from sae_core.errors import UserError
    from sae_core.files import read_json
    from sae_core.storage import QUALITY
    from sae_core.text import held_out

    dictionaries.check(model)
    for dictionary in dictionaries.dictionaries.values():
        dictionary.to(model.device)
    text = replace(dictionaries.text, source=source) if source else dictionaries.text
    contexts = text.contexts(model)
    path = folder / QUALITY
    if path.is_file() and not source:
        try:
            return contexts, Measured.from_json(read_json(path))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error}; remove it to have it measured again") from error
    say("measuring the dictionaries")
    return contexts, measure(model, dictionaries, held_out(contexts)[1])


def measure(model: "LanguageModel", dictionaries: "DictionarySet", contexts: "torch.Tensor") -> "Measured":
    """Quality and splice cost of every dictionary on at most 64 contexts."""
    from circuits.page import Measured
    from editing.splice import splice_costs
    from sae_core.measures import quality

    own, few = dictionaries.dictionaries, contexts[:64]
    return Measured(quality(model, own, contexts), splice_costs(model, own, few))
