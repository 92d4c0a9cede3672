"""Values of options made into what they name, or a `UserError` that says what was expected."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae_core.model.language_model import LanguageModel
    from sae_core.sites import Site


def at_least(name: str, value: int, least: int) -> None:
    """Raise `UserError` for an option that is too small."""
    from sae_core.errors import UserError

    if value < least:
        raise UserError(f"{name} must be at least {least}; got {value}")


def writable(folder: Path) -> Path:
    """`folder`, made if need be; raises `UserError` before any work if results could not be written there."""
    import tempfile

    from sae_core.errors import UserError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror}") from error
    return folder


def model_of(name: str, device: str | None) -> "LanguageModel":
    """The model of that name, on the device asked for."""
    import torch

    from sae_core.errors import UserError
    from sae_core.model.language_model import load_model

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from error
    return load_model(name, device=device)


def sites_of(model: "LanguageModel", places: Iterable[str]) -> "tuple[Site, ...]":
    """Sites named one by one or by stream, checked against the model."""
    from sae_core.sites import Site, Stream

    found = []
    for place in places:
        found += model.sites(Stream(place)) if place in set(Stream) else [model.check(Site.parse(place))]
    return tuple(sorted(set(found)))


def site_of(name: str | None) -> "Site | None":
    """The site of that name, or None."""
    from sae_core.sites import Site

    return Site.parse(name) if name else None
