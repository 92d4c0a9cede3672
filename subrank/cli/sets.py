"""A saved set, opened for work: its model, its contexts and what its dictionaries are worth."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from subrank.cli.arguments import model_of, writable
from subrank.cli.terminal import say

if TYPE_CHECKING:
    import torch

    from editing.set_quality import SetQuality
    from sae_core.model.language_model import LanguageModel
    from sae_core.storage import DictionarySet


def open_set(options: argparse.Namespace) -> "tuple[Path, LanguageModel, DictionarySet, torch.Tensor, SetQuality]":
    """Output folder, model, set, contexts and measured quality for a verb that works on a set."""
    from sae_core.storage import load_set

    dictionaries = load_set(options.dir)
    out = writable(options.out or options.dir / options.verb)
    model = model_of(options.model or dictionaries.model, options.device)
    return out, model, dictionaries, *prepared(dictionaries, options.dir, model, options.text)


def prepared(
    dictionaries: "DictionarySet", folder: Path, model: "LanguageModel", source: str | None = None
) -> "tuple[torch.Tensor, SetQuality]":
    """Contexts (of another text, if `source` names one) and quality of the set in `folder`.

    Checks the set against `model` and moves its dictionaries to the model's device.
    """
    from editing.set_quality import SetQuality, measure_set
    from sae_core.data.text import held_out
    from sae_core.errors import UserError
    from sae_core.files import read_json
    from sae_core.storage import QUALITY

    dictionaries.check(model)
    for dictionary in dictionaries.dictionaries.values():
        dictionary.to(model.device)
    text = replace(dictionaries.text, source=source) if source else dictionaries.text
    contexts = text.contexts(model)
    path = folder / QUALITY
    if path.is_file() and not source:
        try:
            return contexts, SetQuality.from_json(read_json(path))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: {error}; remove it to have it measured again") from error
    say("measuring the dictionaries")
    return contexts, measure_set(model, dictionaries, held_out(contexts)[1])
