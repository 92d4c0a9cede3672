"""Edits on disk, as safetensors and JSON, for any text that a model reads or writes.

Saved by `save_edit(edit, folder)`, an edit is applied in three lines:

    edits = load_edit(folder, model)
    with model.hooks(*edits):
        ...
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editing.interventions.compose import Scaled, Spared
from editing.interventions.erase import Erasure
from editing.interventions.patch import FeaturePatch
from sae_core.codec import finite
from sae_core.dictionaries.kinds import describe, restore
from sae_core.errors import UserError
from sae_core.files import read_json, read_tensors, reading, user_path, write_json, write_tensors
from sae_core.model.fingerprint import parts_other_than
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import Site

CARD, TENSORS = "edit.json", "edit.safetensors"
Card = dict[str, Any]
_DICTIONARY = "d."
"""Before the names of a dictionary's tensors, among those of its edit."""


def save_edit(
    edit: Intervention | Sequence[Intervention], folder: str | Path, model: LanguageModel | None = None
) -> None:
    """Write an edit, or several in their order; `load_edit` is the inverse, to the bit.

    The card names the model that is edited, where it is given.
    Raises `UserError` for an edit of another kind than feature patches to constants and erasures (scaled, with BOS
    spared), and for one with a mask of positions, which belongs to certain prompts.
    """
    folder, (cards, tensors) = user_path(folder), describe_all(edit)
    (folder / CARD).unlink(missing_ok=True)  # new tensors never go with an old card
    written = write_tensors(folder / TENSORS, tensors)
    write_json(folder / CARD, {"model": model and model.fingerprint(), "tensors": written, "edits": cards})


def load_edit(
    folder: str | Path, model: LanguageModel | None = None, *, device: torch.device | str = "cpu"
) -> list[Intervention]:
    """The edits in `folder`, for a model and on its device, or for any and on the given one.

    Raises `UserError` where there are none, where they are damaged, and where they were saved for another model.
    """
    path = user_path(folder) / CARD
    card = read_json(path)
    tensors = read_tensors(path.with_name(TENSORS), card.get("tensors"))
    if model and card.get("model") and (other := parts_other_than(str(card["model"]), model)):
        raise UserError(f"{folder} holds edits of another model than {model.name}: its {' and '.join(other)} differ")
    with reading(path):
        tensors = {name: tensor.to(model.device if model else device) for name, tensor in tensors.items()}
        return [_restore_edit(part, _below(f"{i}.", tensors)) for i, part in enumerate(card["edits"])]


def describe_all(edit: Intervention | Sequence[Intervention]) -> tuple[list[Card], dict[str, Tensor]]:
    """An edit, or several, as cards and the tensors of all: those of edit i under `i.`, none sharing memory."""
    edits = [edit] if isinstance(edit, Intervention) else list(edit)
    parts = [describe_edit(part) for part in edits]
    tensors = {
        f"{i}.{name}": tensor.detach().clone().contiguous()
        for i, (_, named) in enumerate(parts)
        for name, tensor in named.items()
    }
    return [card for card, _ in parts], tensors


def describe_edit(edit: Intervention) -> tuple[Card, dict[str, Tensor]]:
    """An edit as plain values and tensors; raises `UserError` for one that cannot be saved."""
    if getattr(edit, "mask", None) is not None:
        raise UserError(f"the edit of {edit.site} has a mask of positions; an edit for any text has none")
    card: Card = {"site": str(edit.site)}
    if isinstance(edit, Spared):
        inner, tensors = describe_edit(edit.edit)
        return card | {"kind": "spared", "radius": edit.radius, "edit": inner}, tensors | {"anchor": edit.anchor}
    if isinstance(edit, Scaled):
        inner, tensors = describe_edit(edit.edit)
        return card | {"kind": "scaled", "strength": edit.strength, "edit": inner}, tensors
    if isinstance(edit, Erasure):
        return card | {"kind": "erasure", "outlier_norm": finite(edit.outlier_norm)}, {
            "left": edit.left,
            "right": edit.right,
            "mean": edit.mean,
        }
    if isinstance(edit, FeaturePatch) and edit.target.shape[:2] == (1, 1):
        dictionary, tensors = describe(edit.dictionary)
        tensors = {_DICTIONARY + name: tensor for name, tensor in tensors.items()}
        tensors |= {"latents": edit.latents, "target": edit.target}
        tensors |= {} if edit.strengths is None else {"strengths": edit.strengths}
        return card | {"kind": "features", "dictionary": dictionary}, tensors
    raise UserError(f"a {type(edit).__name__} of {edit.site} cannot be saved; feature patches and erasures can")


def _restore_edit(card: Card, tensors: dict[str, Tensor]) -> Intervention:
    """The inverse of `describe_edit`."""
    site, kind = Site.parse(card["site"]), card["kind"]
    if kind == "spared":
        return Spared(_restore_edit(card["edit"], tensors), tensors["anchor"], float(card["radius"]))
    if kind == "scaled":
        return Scaled(_restore_edit(card["edit"], tensors), float(card["strength"]))
    if kind == "erasure":
        limit = card.get("outlier_norm")
        spared = math.inf if limit is None else float(limit)
        return Erasure(site, tensors["left"], tensors["right"], tensors["mean"], outlier_norm=spared)
    if kind != "features":
        raise ValueError(f"unknown kind of edit {kind!r}")
    dictionary = restore(card["dictionary"], _below(_DICTIONARY, tensors))
    return FeaturePatch(site, dictionary, tensors["latents"], tensors["target"], strengths=tensors.get("strengths"))


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
