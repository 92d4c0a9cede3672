"""What a reader returns, and the checks that readers share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sae_core.dictionaries.normalised import Autoencoder
from sae_core.errors import UserError
from sae_core.formats.hook_names import site_of
from sae_core.sites import Site


@dataclass(frozen=True, eq=False)
class Foreign:
    """A dictionary from elsewhere, and what its files say about where it belongs (None: nothing)."""

    dictionary: Autoencoder
    format: str
    place: str | None = None
    """The hook point or module that they name."""
    model_name: str | None = None
    prepend_bos: bool | None = None
    n_ctx: int | None = None

    @property
    def site(self) -> Site | None:
        """The site that `place` is in every model; None where it is none, or the model must be asked."""
        return None if self.place is None else site_of(self.place)


def check_setting(name: str, value: Any, *allowed: Any) -> None:
    """Raise `UserError`, naming the setting, unless its value is one that we can represent."""
    if value not in allowed:
        raise UserError(f"it has {name} = {' '.join(repr(value).split())[:80]}, which cannot be represented here")


def agreed(statements: Mapping[str, Any]) -> Any:
    """What all statements that are made say (None where none is); raises `UserError`, naming two, where they differ."""
    said = [(name, value) for name, value in statements.items() if value is not None]
    for name, value in said:
        if value != said[0][1]:
            raise contradiction(f"{said[0][0]} = {said[0][1]!r}", f"{name} = {value!r}")
    return said[0][1] if said else None


def contradiction(statement: str, other: str) -> UserError:
    return UserError(f"it has {statement}, but it has {other}; correct the one that is wrong")


def as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def positive_whole(name: str, value: Any) -> int:
    value = plain(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"its {name} is {value!r}; expected a positive whole number")
    return value


def foreign_of(dictionary: Autoencoder, name: str, place: Any, model: Any, bos: Any, n_ctx: Any) -> Foreign:
    """What the files say, as far as it is of the type that it should be."""
    return Foreign(
        dictionary,
        name,
        place if isinstance(place, str) and place else None,
        model if isinstance(model, str) else None,
        bos if isinstance(bos, bool) else None,
        n_ctx if isinstance(n_ctx, int) else None,
    )


def calibrated(name: str, threshold: Tensor, *, unset: float) -> Tensor:
    if threshold.item() <= unset:
        raise UserError(
            f"its {name} was never set (it is {threshold.item():g}), so that its codes would depend on the batch; "
            "set it to the mean over batches of the smallest activation kept, and save it again"
        )
    return threshold
