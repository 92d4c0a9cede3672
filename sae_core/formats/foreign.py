"""What a reader returns, and the checks that readers share."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sae_core.dictionaries.normalised import Autoencoder
from sae_core.errors import UserError
from sae_core.sites import Site


@dataclass(frozen=True, eq=False)
class Foreign:
    """A dictionary from elsewhere, and what its files say about where it belongs (None: nothing)."""

    dictionary: Autoencoder
    format: str
    site: Site | None = None
    model_name: str | None = None
    prepend_bos: bool | None = None
    n_ctx: int | None = None


def check_setting(name: str, value: Any, *allowed: Any) -> None:
    """Raise `UserError`, naming the setting, unless its value is one that we can represent."""
    if value not in allowed:
        raise UserError(f"it has {name} = {' '.join(repr(value).split())[:80]}, which cannot be represented here")


def as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def positive_whole(name: str, value: Any) -> int:
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"its {name} is {value!r}; expected a positive whole number")
    return value


def foreign_of(dictionary: Autoencoder, name: str, site: Site | None, model: Any, bos: Any, n_ctx: Any) -> Foreign:
    """What the files say, as far as it is of the type that it should be."""
    return Foreign(
        dictionary,
        name,
        site,
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
