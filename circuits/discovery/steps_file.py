"""The steps of a search on disk, so that an interrupted one goes on where it was.

A file of lines: first a card that names everything the steps depend on, then one step per line. Another card means
another search, and its steps are discarded.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from circuits.discovery.request import ResolvedRequest
from circuits.discovery.target_causes import TargetCauses
from sae_core.codec import from_plain, to_plain
from sae_core.digest import differences, digest
from sae_core.files import parse_json, write_text
from sae_core.sites import FeatureId

log = logging.getLogger(__name__)
STEPS = "steps.jsonl"


def steps_card(resolved: ResolvedRequest, sufficient: Sequence[FeatureId] = ()) -> dict[str, Any]:
    """Everything that the steps of a search depend on; the model, the dictionaries and the texts by digest."""
    search, examples = resolved.search, resolved.examples
    return {
        "request": to_plain(resolved.request),
        "config": to_plain(search.config),
        "target": str(resolved.target.node),
        "nodes": [str(feature) for feature in sufficient],
        "model": search.model.fingerprint(),
        "dictionaries": digest(search.dictionaries),
        "contexts": digest(resolved.atlas.contexts),
        "prompts": None if examples is None else digest(examples.tokens, examples.end, resolved.corrupted),
    }


def remembered(
    path: Path, card: Mapping[str, Any], search: Callable[[list[TargetCauses]], Iterator[TargetCauses]]
) -> Iterator[TargetCauses]:
    """Yield the steps of `search(done)`, writing each down; the file is removed when the search is complete.

    `done` are the steps that `path` holds under the same card. A file with another card, which is said, or one that was
    cut off, is overwritten from there on.
    """
    first = json.dumps(card, sort_keys=True)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    done = _steps(lines[1:]) if lines[:1] == [first] else []
    if lines and lines[0] != first:
        log.warning(f"the steps in {path} are of {_other(lines[0], json.loads(first))}: the search begins anew")
    written = [first]
    for step in search(done):
        yield step
        written.append(json.dumps(to_plain(step)))
        write_text(path, "\n".join(written) + "\n")
    path.unlink(missing_ok=True)


def _other(line: str, card: Mapping[str, Any]) -> str:
    """In what the card on a line differs from this one, in words."""
    try:
        names = differences(parse_json(line, "the card"), card)
        return f"another {', another '.join(names)}"
    except (ValueError, AttributeError):  # no JSON, or no card
        return "an unknown search"


def _steps(lines: Sequence[str]) -> list[TargetCauses]:
    """The steps up to the first line that was cut off while it was written."""
    steps = []
    for line in lines:
        try:
            steps.append(from_plain(TargetCauses, parse_json(line, "a step")))
        except ValueError:  # UserError included
            break
    return steps
