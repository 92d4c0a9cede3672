"""The contexts of the storybook beside a set of dictionaries that was trained on it.

The storybook is drawn, not read from anywhere: equal settings give equal contexts, and drawing them takes longer than
most of what is asked of them. What is kept is known again by the digest of the set's text. Other texts are read each
time, so that a file that has changed is noticed.
"""

import logging
from pathlib import Path

import torch

from sae_core.data.text import Contexts, Text
from sae_core.errors import UserError
from sae_core.files import read_tensors, write_tensors
from sae_core.model.language_model import LanguageModel

log = logging.getLogger(__name__)
NAME = "text.safetensors"


def read_kept(text: Text, model: LanguageModel, folder: Path) -> Contexts:
    """The contexts of `text` in `model`'s tokens, taken from `folder` where they lie there, and put there if not."""
    if text.source != "storybook" or not text.digest:
        return text.read(model)
    kept = _kept(folder / NAME)
    if kept is not None and kept.digest == text.digest:
        return kept
    contexts = text.read(model)
    try:
        write_tensors(folder / NAME, {"training": contexts.training.clone(), "held_out": contexts.held_out.clone()})
    except (OSError, UserError) as error:
        log.info(f"the text is not kept: {folder} cannot be written ({error})")
    return contexts


def _kept(path: Path) -> Contexts | None:
    """What lies there; None where it is nothing or nothing whole: it is drawn again."""
    if not path.is_file():
        return None
    try:
        tensors = read_tensors(path)
        training, held = tensors["training"], tensors["held_out"]
    except (UserError, LookupError) as error:
        log.info(f"{path} is damaged and is made anew ({error})")
        return None
    return Contexts(training, training if torch.equal(training, held) else held)
