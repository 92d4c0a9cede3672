"""Sets that a verb has made, put where it was told to."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subrank.result import Provenance
    from subrank.saes import Saes


def save_sets(
    out: Path,
    sets: "Mapping[str, Saes]",
    provenance: "Provenance",
    thresholds: Mapping[str, Any] | None = None,
) -> None:
    """Write new sets, `result.json`, which says what they are worth, and `provenance.json`: all of it or nothing."""
    from dataclasses import asdict

    from sae_core.files import write_json
    from sae_core.folders import replacing
    from sae_core.storage import QUALITY, SET
    from subrank.result import PROVENANCE, RESULT, quick_note

    measured = {name: saes.quality.to_json() for name, saes in sets.items() if saes.quality}
    numbers = {"dictionaries": measured if len(measured) > 1 else next(iter(measured.values()))}
    with replacing(out, QUALITY, RESULT, SET) as new:
        for name, saes in sets.items():
            saes.write(new if len(sets) == 1 else new / name)
        write_json(new / PROVENANCE, asdict(provenance))
        write_json(new / RESULT, numbers | ({"thresholds": thresholds} if thresholds else {}) | quick_note(provenance))
