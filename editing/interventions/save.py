"""Edits on disk, as safetensors and JSON, for any text that a model reads or writes.

Saved by `save_edit(edit, folder)`, an edit is applied in three lines:

    edits = load_edit(folder, device=model.device)
    with model.hooks(*edits):
        ...
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editing.interventions.compose import Scaled, Spared
from editing.interventions.erase import Erasure
from editing.interventions.patch import FeaturePatch
from sae_core.dictionaries.baselines import Basis, Rectified, Unmixing
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.normalised import LayerNormed, Normed, NormRescaled
from sae_core.dictionaries.saes import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from sae_core.errors import UserError
from sae_core.files import read_json, read_tensors, write_json, write_tensors
from sae_core.model.language_model import Intervention
from sae_core.sites import Site

CARD, TENSORS = "edit.json", "edit.safetensors"
_SAES = {"relu": ReLUSAE, "topk": TopKSAE, "jumprelu": JumpReLUSAE, "gated": GatedSAE}
_BASES = {"basis": Basis, "rectified": Rectified, "unmixing": Unmixing}
_NORMS = {"layer norm": LayerNormed, "rescaled": NormRescaled}
Card = dict[str, Any]


def save_edit(edit: Intervention | Sequence[Intervention], folder: Path) -> None:
    """Write an edit, or several in their order; `load_edit` is the inverse, to the bit.

    Raises `UserError` for an edit of another kind than feature patches to constants and erasures (scaled, with BOS
    spared), and for one with a mask of positions, which belongs to certain prompts.
    """
    edits = [edit] if isinstance(edit, Intervention) else list(edit)
    cards, tensors = [], {}
    for number, one in enumerate(edits):
        card, own = described(one)
        cards.append(card)
        tensors |= separate(own, number)
    (folder / CARD).unlink(missing_ok=True)  # new tensors never go with an old card
    write_tensors(folder / TENSORS, tensors)
    write_json(folder / CARD, {"edits": cards})


def load_edit(folder: Path, *, device: torch.device | str = "cpu") -> list[Intervention]:
    """The edits in `folder`; raises `UserError` where there are none or they are damaged."""
    card, tensors = read_json(Path(folder) / CARD), read_tensors(Path(folder) / TENSORS)
    try:
        return [_edit(one, _of(tensors, f"{i}.", device)) for i, one in enumerate(card["edits"])]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} is damaged: {str(error).splitlines()[0]}") from error


def described(edit: Intervention) -> tuple[Card, dict[str, Tensor]]:
    """An edit as plain values and tensors; raises `UserError` for one that cannot be written down."""
    if getattr(edit, "mask", None) is not None:
        raise UserError(f"the edit of {edit.site} has a mask of positions; an edit for any text has none")
    card: Card = {"site": str(edit.site)}
    if isinstance(edit, Spared):
        inner, tensors = described(edit.edit)
        return card | {"kind": "spared", "radius": edit.radius, "edit": inner}, tensors | {"anchor": edit.anchor}
    if isinstance(edit, Scaled):
        inner, tensors = described(edit.edit)
        return card | {"kind": "scaled", "strength": edit.strength, "edit": inner}, tensors
    if isinstance(edit, Erasure):
        return card | {"kind": "erasure"}, {"left": edit.left, "right": edit.right, "mean": edit.mean}
    if isinstance(edit, FeaturePatch) and edit.target.shape[:2] == (1, 1):
        dictionary, tensors = _described_dictionary(edit.dictionary)
        latents = {"latents": edit.latents, "target": edit.target}
        return card | {"kind": "features", "dictionary": dictionary}, tensors | latents
    raise UserError(f"a {type(edit).__name__} of {edit.site} cannot be saved; feature patches and erasures can")


def _described_dictionary(dictionary: Dictionary) -> tuple[Card, dict[str, Tensor]]:
    for kind, base in _BASES.items():
        if type(dictionary) is base:
            return {"kind": kind}, {f"d.{own.name}": getattr(dictionary, own.name) for own in fields(base)}
    norm = next((name for name, normed in _NORMS.items() if type(dictionary) is normed), None)
    sae = dictionary.inner if isinstance(dictionary, Normed) else dictionary
    kind = next((name for name, one in _SAES.items() if type(sae) is one), None)
    if kind is None:
        raise UserError(f"features of a {type(dictionary).__name__} cannot be saved; give one of {', '.join(_SAES)}")
    tensors = {f"d.{name}": tensor for name, tensor in sae.state_dict().items()}
    card: Card = {"kind": kind, "norm": norm}
    if isinstance(sae, TopKSAE):
        card["k"] = sae.k
        if sae.gain is not None:
            tensors["d.gain"] = sae.gain
    return card, tensors


def separate(tensors: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """The tensors of edit `number`, named after it, none sharing memory with another."""
    return {f"{number}.{name}": tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def _of(tensors: dict[str, Tensor], prefix: str, device: torch.device | str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: tensor.to(device) for name, tensor in tensors.items() if name.startswith(prefix)}


def _edit(card: Card, tensors: dict[str, Tensor]) -> Intervention:
    site, kind = Site.parse(card["site"]), card["kind"]
    if kind == "spared":
        return Spared(_edit(card["edit"], tensors), tensors["anchor"], float(card["radius"]))
    if kind == "scaled":
        return Scaled(_edit(card["edit"], tensors), float(card["strength"]))
    if kind == "erasure":
        return Erasure(site, tensors["left"], tensors["right"], tensors["mean"])
    if kind != "features":
        raise ValueError(f"unknown kind of edit {kind!r}")
    return FeaturePatch(site, _dictionary(card["dictionary"], tensors), tensors["latents"], tensors["target"])


def _dictionary(card: Card, tensors: dict[str, Tensor]) -> Dictionary:
    own = _of(tensors, "d.", tensors["latents"].device)
    if card["kind"] in _BASES:
        return _BASES[card["kind"]](**own)
    gain = own.pop("gain", None)
    n_latents, d_in = own["W_dec"].shape
    more = (card["k"],) if card["kind"] == "topk" else ()
    sae: SAE = _SAES[card["kind"]](d_in, n_latents, *more, generator=torch.Generator()).to(own["W_dec"])
    sae.load_state_dict(own)
    sae.requires_grad_(False)
    if gain is not None:
        sae.gain = gain
    return _NORMS[card["norm"]](sae) if card["norm"] else sae
