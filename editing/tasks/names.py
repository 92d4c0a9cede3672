"""First names with the pronoun that English text uses for them, and which of them a model can use."""

import re
from collections.abc import Sequence

from editing.tasks.words import BY_TASK
from sae_core.model.language_model import LanguageModel

FEMALE, MALE = BY_TASK["names"]["female"], BY_TASK["names"]["male"]
PUBLISHED = BY_TASK["names"]["published"]
"""The 99 names of the IOI literature, in its order."""


def known(model: LanguageModel, text: str) -> bool:
    """Whether every word of `text` has a token in the model's vocabulary."""
    return model.tokenizer.unk_token_id in (model.tokenizer.eos_token_id, None) or (
        model.tokenizer.unk_token_id not in model.to_ids(text)
    )


def unknown_word(model: LanguageModel, text: str) -> str | None:
    """The first word of `text` that has no token in the model's vocabulary; None if all have one."""
    if known(model, text):
        return None
    return next((word for word in re.findall(r"\w+|[^\w\s]", text) if not known(model, word)), text)


def single_token(model: LanguageModel, names: Sequence[str]) -> list[str]:
    """Those names that are one token inside a sentence."""
    return [name for name in names if known(model, name) and len(model.continuation_ids("Then", f" {name}")) == 1]
