"""The kinds of dictionary and what files call them, in one place.

Saved sets (`sae_core/storage.py`), other tools' files (`sae_core/formats`), saved edits and exported hooks
(`editing/interventions`) all go by these tables. A dictionary is written as a card of plain values and its tensors:
a baseline is its fields, an autoencoder its parameters and settings, under the normalisation it stands behind, if any.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from sae_core import checks
from sae_core.dictionaries.baselines import Basis, Rectified, Unmixing
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.normalised import Autoencoder, Centred, LayerNormed, Normed, NormRescaled
from sae_core.dictionaries.saes import SAE, GatedSAE, JumpReLUSAE, ReLUSAE, TiedSAE, TopKSAE
from sae_core.errors import UserError, no_such
from sae_core.outliers import outlier_norm_of

CENTRED = "center_writing_weights"
"""TransformerLens' name of the one way to load a model that changes activations at a site (see `Centred`)."""


@dataclass(frozen=True)
class Kind:
    """One kind of dictionary."""

    name: str
    """In saved edits and exported hooks."""
    type: type
    sae_lens: str = ""
    """SAELens' `architecture` of an autoencoder, or `normalize_activations` of a normalisation."""
    settings: tuple[str, ...] = ()
    """Attributes beside the tensors; the constructor takes them behind the sizes."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """What else a SAELens card says of every dictionary of this kind."""
    loaded: Mapping[str, Any] = field(default_factory=dict)
    """What a SAELens card says of how the model was loaded (`model_from_pretrained_kwargs`)."""


SAES = (
    Kind("topk", TopKSAE, "topk", ("k",), {"rescale_acts_by_decoder_norm": False}),
    Kind("relu", ReLUSAE, "standard"),
    Kind("jumprelu", JumpReLUSAE, "jumprelu"),
    Kind("gated", GatedSAE, "gated"),
)
"""Autoencoders. A `TiedSAE` is written as the `ReLUSAE` that it is once trained."""
NORMALISATIONS = (
    Kind("layer norm", LayerNormed, "layer_norm"),
    Kind("rescaled", NormRescaled, "constant_norm_rescale"),
    Kind("centred", Centred, "none", loaded={CENTRED: True}),
)
"""What an autoencoder may stand behind."""
BASELINES = (Kind("basis", Basis), Kind("rectified", Rectified), Kind("unmixing", Unmixing))
"""Dictionaries that are nothing but their fields, all tensors. No SAELens file holds one."""


@dataclass(frozen=True, eq=False)
class Parts:
    """An autoencoder, its kind, and the normalisation that it stands behind (None: it reads the activations)."""

    sae: SAE
    kind: Kind
    normalisation: Kind | None


def parts(dictionary: Dictionary | Autoencoder) -> Parts:
    """An autoencoder taken apart; raises `UserError` for a dictionary of a kind that is not listed here."""
    normalisation = _kind_of(dictionary, NORMALISATIONS)
    sae = dictionary.inner if isinstance(dictionary, Normed) else dictionary
    if isinstance(sae, TiedSAE):
        sae = sae.unscaled(1.0)
    kind = _kind_of(sae, SAES)
    if kind is None or not isinstance(sae, SAE) or (isinstance(dictionary, Normed) and normalisation is None):
        raise UserError(
            f"a {type(dictionary).__name__} cannot be saved; autoencoders of these kinds can: {_names(SAES)}"
        )
    return Parts(sae, kind, normalisation)


def describe(dictionary: Dictionary) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A dictionary as plain values and tensors; `restore` is the inverse, to the bit.

    Raises `UserError` for a kind that is not listed here.
    """
    baseline = _kind_of(dictionary, BASELINES)
    if baseline is not None:
        return {"kind": baseline.name}, {part.name: getattr(dictionary, part.name) for part in fields(baseline.type)}
    whole = parts(dictionary)
    card = {"kind": whole.kind.name, "norm": whole.normalisation and whole.normalisation.name}
    tensors = dict(whole.sae.state_dict())
    if (gain := getattr(whole.sae, "gain", None)) is not None:  # not among the state: SAELens has no name for it
        tensors["gain"] = gain
    if (limit := outlier_norm_of(dictionary)) < math.inf:
        card["outlier_norm"] = limit
    return card | {name: getattr(whole.sae, name) for name in whole.kind.settings}, tensors


def restore(card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Dictionary:
    """The dictionary that `describe` took apart, frozen; raises `UserError` for an unknown kind."""
    kind = _named(card["kind"], BASELINES + SAES)
    if kind in BASELINES:
        return kind.type(**tensors)
    n_latents, d_in = tensors["W_dec"].shape
    settings = [card[name] for name in kind.settings]
    for name, value in zip(kind.settings, settings, strict=True):
        checks.whole(name, value, 1)
    sae = kind.type(d_in, n_latents, *settings, generator=torch.Generator()).to(tensors["W_dec"])
    sae.load_state_dict({name: tensor for name, tensor in tensors.items() if name != "gain"})
    sae.requires_grad_(False)
    if "gain" in tensors:
        sae.gain = tensors["gain"]
    dictionary = _named(card["norm"], NORMALISATIONS).type(sae) if card["norm"] else sae
    if "outlier_norm" in card:
        checks.positive("the outlier norm", card["outlier_norm"], most=math.inf)
        dictionary.outlier_norm = card["outlier_norm"]
    return dictionary


def _kind_of(dictionary: object, kinds: Iterable[Kind]) -> Kind | None:
    """By the exact type: a subclass may encode in another way."""
    return next((kind for kind in kinds if type(dictionary) is kind.type), None)


def _named(name: object, kinds: tuple[Kind, ...]) -> Kind:
    for kind in kinds:
        if kind.name == name:
            return kind
    raise no_such("kind of dictionary", name, (kind.name for kind in kinds))


def _names(kinds: Iterable[Kind]) -> str:
    return ", ".join(kind.name for kind in kinds)
