"""A survey beside its set: files of coded contexts, and a card of everything that they depend on.

A folder with `survey.json` and any number of `codes-CARD-TOKENS.safetensors`, named by digests and each written whole.
Files under another card, or that are damaged, are removed and what they held is read again: all of it can be.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.features.sparse_codes import CodedContexts
from sae_core.digest import differences, digest
from sae_core.errors import UserError
from sae_core.files import read_json, read_tensors, write_json, write_tensors
from sae_core.partial import sweep
from sae_core.sites import Site

log = logging.getLogger(__name__)
CARD, FILES = "survey.json", "codes-*.safetensors"


@dataclass(frozen=True)
class SurveyFolder:
    """Where the coded contexts of a set are kept."""

    folder: Path
    card: Mapping[str, Any]
    """Everything that codes depend on, besides the contexts' own tokens."""
    widths: Mapping[Site, int]
    """Latents of each dictionary."""

    def load(self) -> list[CodedContexts]:
        """What is there; nothing where the folder is not there, or belongs to anything else, which is said."""
        sweep(self.folder)
        files = sorted(self.folder.glob(FILES))
        if not files:
            return []
        try:
            stored = read_json(self.folder / CARD)
        except UserError as error:
            stored = {name: str(error) for name in self.card}
        other = differences(stored, self.card)
        strangers = [path for path in files if not path.match(self._name("*"))]
        if other or strangers:
            other = other or ["origin"]
            log.warning(f"the survey in {self.folder} is of other {', '.join(other)}: it is made anew")
            self._remove([*files, self.folder / CARD])
            return []
        return [contexts for path in files if (contexts := self._read(path)) is not None]

    def _read(self, path: Path) -> CodedContexts | None:
        try:
            return CodedContexts.from_tensors(read_tensors(path), self.widths)
        except (UserError, LookupError, ValueError, RuntimeError) as error:
            log.warning(f"{path} is damaged and is made anew ({error})")
            self._remove([path])
            return None

    def write(self, contexts: CodedContexts) -> bool:
        """Add a file; False, with a line that says so, where the folder cannot be written."""
        try:
            if not (self.folder / CARD).is_file():
                write_json(self.folder / CARD, dict(self.card))
            write_tensors(self.folder / self._name(digest(contexts.tokens)[:16]), contexts.tensors())
        except (OSError, UserError) as error:
            log.warning(f"what was read of the text is not kept: {self.folder} cannot be written ({error})")
            return False
        return True

    def _name(self, tokens: str) -> str:
        """Of a file of these contexts: two surveys of one folder never read each other's."""
        return FILES.replace("*", f"{digest(self.card)[:16]}-{tokens}")

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError:  # a folder that cannot be written is not written either
                return
