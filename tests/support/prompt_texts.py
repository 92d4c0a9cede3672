"""Prompts taken apart as text: their words, the people in them, and what is left without these."""

import re

from editing.tasks import names
from sae_core.model.language_model import LanguageModel

EVERYONE = {*names.FEMALE, *names.MALE}


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)


def people(text: str) -> list[str]:
    """Names in `text`, as often as they stand there."""
    return [word for word in words(text) if word in EVERYONE]


def template(text: str) -> str:
    for name in people(text):
        text = re.sub(rf"\b{name}\b", "{N}", text)
    return text


def id_of(model: LanguageModel, name: str) -> int:
    (token,) = model.to_ids(f" {name}")
    return token
