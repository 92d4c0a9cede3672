"""The names, words and templates of the built-in tasks, from `words.json`; the tasks say how they are used."""

from pathlib import Path
from typing import Any

from sae_core.files import read_json


def _split(value: Any) -> Any:
    """Lists of words are written as one text."""
    if isinstance(value, dict):
        return {name: _split(part) for name, part in value.items()}
    return value.split() if isinstance(value, str) else value


BY_TASK: dict[str, dict[str, Any]] = _split(read_json(Path(__file__).with_name("words.json")))
"""Words as lists, templates as lists of texts (of brackets: of objects)."""
