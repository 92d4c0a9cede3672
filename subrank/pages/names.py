"""Names of a circuit's nodes, written by hand: `names.json`, which the explorer saves and `--names` reads.

    {"run": "5f0c…", "names": {"5_17": "closing bracket", "logit: she - he": "she, not he"}}

`run` says which page saved the file; names are kept whatever it says.
"""

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuits.graph import parse_node
from sae_core.errors import UserError
from sae_core.files import read_json, user_path, write_json

LONGEST = 120
"""Characters of a name, at most."""


def check_names(names: Mapping[str, Any]) -> dict[str, str]:
    """The names, by `str(node)`; raises `UserError` where a key is no node or a name cannot be shown on a line."""
    for node, name in names.items():
        try:
            parse_node(node)
        except UserError as error:
            raise UserError(f"names.json names {node!r}, which is no node: {error}") from error
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"the name of {node} is {name!r}; a name is a text that is not empty")
        if len(name) > LONGEST:
            raise UserError(f"the name of {node} has {len(name)} characters; a name has at most {LONGEST}")
        if any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in name):
            raise UserError(f"the name of {node} is {name!r}; a name is one line without control characters")
    return {node: name.strip() for node, name in names.items()}


def read_names(path: str | Path) -> dict[str, str]:
    """The names in a `names.json`, by `str(node)`; raises `UserError` where the file is not one."""
    names = read_json(user_path(path)).get("names")
    if not isinstance(names, dict):
        raise UserError(f'{path} holds no names; expected {{"names": {{"5_17": "closing bracket"}}}}')
    try:
        return check_names(names)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def write_names(path: str | Path, names: Mapping[str, str], *, run: str = "") -> None:
    """Write a `names.json` that `read_names` reads, nodes in order of their text."""
    write_json(user_path(path), {"run": run, "names": dict(sorted(check_names(names).items()))})
