"""Which positions an edit touches, in one forward pass and while text is generated.

An edit is a pure function of the activation `[batch, pos, d]` of one pass. When a model generates with a
key-value cache, the first pass holds the prompts and every later one a single new position per row; the
edit sees no more of where it is than that. So a mask means:

    None               every position, generated ones too
    mask [batch, pos]  the positions it names, and none that is generated
    Onward(mask)       the positions it names, and all that are generated

Values that are given position by position (a target, a direction) end where their positions end: what is
generated after them is left alone. One row of a mask or of such values holds for every row, one column
for every position; hence prompts of a single token cannot be told from what follows, and a mask or a
value for them holds on. Padding on the right is left out of a mask like any other position.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_core.errors import UserError
from sae_core.model.language_model import Intervention
from sae_core.outliers import inliers, outlier_norm_of
from sae_core.sites import Site


@dataclass(frozen=True, eq=False)
class Onward:
    """The positions of `mask` and every later one, in passes that are longer and in those that follow.

    A pass of one position is edited whole, also where it is a prompt of a single token.
    """

    mask: Bool[Tensor, "rows columns"]


Mask = Bool[Tensor, "rows columns"] | Onward | None


def where(
    mask: Mask, changed: Float[Tensor, "batch pos d"], h: Float[Tensor, "batch pos d"]
) -> Float[Tensor, "batch pos d"]:
    """`changed` at the positions that `mask` lets an edit write to, `h` elsewhere."""
    return changed if mask is None else torch.where(reach(mask, h)[..., None], changed, h)


def where_inlier(
    sparing: object, mask: Mask, changed: Float[Tensor, "batch pos d"], h: Float[Tensor, "batch pos d"]
) -> Float[Tensor, "batch pos d"]:
    """`where`, and tokens above the `outlier_norm` of `sparing`, a dictionary or an eraser, keep `h` too."""
    changed, limit = where(mask, changed, h), outlier_norm_of(sparing)
    return changed if limit == math.inf else torch.where(inliers(h, limit)[..., None], changed, h)


def ended(values: Float[Tensor, "rows columns _"], h: Float[Tensor, "batch pos d"]) -> bool:
    """Whether `values`, given position by position, say nothing of this pass because it comes after them.

    Raises `UserError` if they are for other prompts than these.
    """
    if h.shape[1] == 1 < values.shape[1]:
        return True
    _check_places("values", values, h)
    return False


def reach(
    mask: Mask, h: Float[Tensor, "batch pos d"], values: Float[Tensor, "value_rows value_columns _"] | None = None
) -> Bool[Tensor, "batch pos"]:
    """The positions of this pass that an edit with such a mask and such values may write to.

    The positions of the mask; none once `values`, given position by position, have ended. Raises `UserError` if mask
    or values are for other prompts than these.
    """
    n_pos = h.shape[1]
    if values is not None and ended(values, h):
        return torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
    if mask is None or (isinstance(mask, Onward) and n_pos == 1):
        return torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
    onward, places = isinstance(mask, Onward), mask.mask if isinstance(mask, Onward) else mask
    if n_pos == 1 < places.shape[1]:  # a position that was generated after the prompts
        return torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
    later = max(0, n_pos - places.shape[1]) if onward else 0
    _check_places("mask", places, h, later)
    return torch.cat([places, places.new_ones(len(places), later)], 1).to(h.device).expand(h.shape[:2])


@runtime_checkable
class Reaching(Protocol):
    """An edit that says itself where it may write."""

    def reach(self, h: Tensor) -> Tensor: ...


def reach_of(edit: Intervention, h: Float[Tensor, "batch pos d"]) -> Bool[Tensor, "batch pos"]:
    """The positions of this pass that any edit may write to.

    Where it does not say so itself: those of its mask; of an edit made of another (`edit`), those of that one, under
    the outer mask if there is one.
    """
    if isinstance(edit, Reaching):
        return edit.reach(h)
    mask, inner = getattr(edit, "mask", None), getattr(edit, "edit", None)
    if not isinstance(inner, Intervention):
        return reach(mask, h)
    return reach_of(inner if mask is None else with_mask(inner, mask), h)


def with_mask(edit: Intervention, mask: Mask) -> Intervention:
    """The same edit under another mask; every edit that has one is a frozen dataclass with a field `mask`."""
    return replace(edit, mask=mask)  # pyright: ignore[reportArgumentType]


def check_width(site: Site, width: int, h: Float[Tensor, "batch pos d"]) -> None:
    """Raise `UserError` unless the activation is as wide as the edit was made for."""
    if h.shape[-1] != width:
        raise UserError(
            f"the edit of {site} is made for {width} dimensions, the activation there has {h.shape[-1]}; "
            "is it meant for another site or model?"
        )


def _check_places(what: str, places: Tensor, h: Tensor, later: int = 0) -> None:
    """Raise `UserError` unless rows and columns are those of the pass less `later` positions, or single ones."""
    rows, columns = places.shape[:2]
    if rows not in (1, h.shape[0]) or columns not in (1, h.shape[1] - later):
        raise UserError(
            f"the edit's {what} for {rows} prompts of {columns} tokens cannot edit {h.shape[0]} of {h.shape[1]}; "
            "make the edit from the tokens that the model runs on"
        )
