"""Names of a circuit's nodes and groups of them, by hand: `names.json`, which the explorer saves and `--names` reads.

    {"run": "5f0c…", "names": {"5_17": "closing bracket", "logit: she - he": "she, not he"},
     "groups": {"inside brackets": ["4_3", "4_9"]}}

`run` says which page saved the file; names are kept whatever it says.
"""

import unicodedata
from collections.abc import Callable, Mapping
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
        _check_name(f"the name of {node}", name)
    return {node: name.strip() for node, name in names.items()}


def check_groups(groups: Mapping[str, Any]) -> dict[str, list[str]]:
    """The groups' nodes, by the group's name; raises `UserError` where a group is none, or a node is in two."""
    seen: set[str] = set()
    for name, nodes in groups.items():
        _check_name(f"the name of the group {name!r}", name)
        if not nodes or isinstance(nodes, str) or not all(isinstance(node, str) for node in nodes):
            raise UserError(f"the group {name!r} holds {nodes!r}; a group is a list of nodes such as '5_17'")
        check_names(dict.fromkeys(nodes, name))
        if twice := seen.intersection(nodes):
            raise UserError(f"{min(twice)} is in two groups; a node is in one at most")
        seen.update(nodes)
    return {name.strip(): list(nodes) for name, nodes in groups.items()}


def _check_name(what: str, name: Any) -> None:
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{what} is {name!r}; a name is a text that is not empty")
    if len(name) > LONGEST:
        raise UserError(f"{what} has {len(name)} characters; a name has at most {LONGEST}")
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in name):
        raise UserError(f"{what} is {name!r}; a name is one line without control characters")


def read_names(path: str | Path) -> dict[str, str]:
    """The names in a `names.json`, by `str(node)`; raises `UserError` where the file is not one."""
    return _read(path, "names", check_names, '{"5_17": "closing bracket"}')


def read_groups(path: str | Path) -> dict[str, list[str]]:
    """The groups of nodes in a `names.json`, by their names, if any; raises `UserError` where they are none."""
    return _read(path, "groups", check_groups, '{"inside brackets": ["4_3", "4_9"]}')


def _read(path: str | Path, part: str, check: Callable[[Mapping[str, Any]], dict], example: str) -> dict[str, Any]:
    value = read_json(user_path(path)).get(part, {} if part == "groups" else None)
    if not isinstance(value, dict):
        raise UserError(f'{path} holds no {part}; expected {{"{part}": {example}}}')
    try:
        return check(value)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def write_names(path: str | Path, names: Mapping[str, str], *, run: str = "") -> None:
    """Write a `names.json` that `read_names` reads, nodes in order of their text."""
    write_json(user_path(path), {"run": run, "names": dict(sorted(check_names(names).items()))})
