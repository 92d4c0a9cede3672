"""SAELens: version 6, whose card nests `metadata`, older ones, which are flat, and training checkpoints."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sae_core.dictionaries.kinds import CENTRED, NORMALISATIONS, SAES, parts
from sae_core.dictionaries.normalised import Autoencoder, Centred, LayerNormed, Normed
from sae_core.dictionaries.saes import SAE
from sae_core.errors import UserError
from sae_core.files import read_json
from sae_core.formats.foreign import (
    Foreign,
    agreed,
    as_object,
    calibrated,
    check_setting,
    contradiction,
    foreign_of,
    positive_whole,
)
from sae_core.formats.hook_names import layer_in, site_of
from sae_core.formats.tensor_files import Source, check_numbers
from sae_core.formats.unit_norm import Raw, convert
from sae_core.sites import Site, Stream

log = logging.getLogger(__name__)
HEADS, FOLDED = "hook_z", "fold_value_biases"
VERSION = "6.0.0"
"""The first SAELens with such cards; it takes a card without a version for an older one, and drops its metadata."""
_SAME_ACTIVATIONS = frozenset(
    "center_writing_weights fold_ln fold_value_biases center_unembed refactor_factored_attn_matrices "
    "dtype torch_dtype device device_map n_devices move_to_device trust_remote_code attn_implementation "
    "low_cpu_mem_usage local_files_only cache_dir token default_prepend_bos default_padding_side n_ctx "
    "first_n_layers "
    "revision checkpoint_index checkpoint_value".split()
)
"""What else a model may have been loaded with: activations at our sites are the same, or (the last line) those of
other weights, which are then the ones to give."""
_MARKS = {
    "threshold": ("jumprelu", "batchtopk", "matryoshka_batchtopk"),
    "log_threshold": ("jumprelu",),
    "b_gate": ("gated",),
    "topk_threshold": ("batchtopk", "matryoshka_batchtopk", "jumprelu"),
}
"""Tensors that only some architectures have."""


def to_sae_lens(dictionary: Autoencoder, about: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of a dictionary as SAELens 6 reads them, `about` being the metadata; see `read_sae_lens`."""
    whole = parts(dictionary)
    sae, kind, normalisation = whole.sae, whole.kind, whole.normalisation
    tensors = dict(sae.state_dict())
    if (gain := getattr(sae, "gain", None)) is not None:  # which SAELens keeps in the lengths of the directions
        tensors["W_dec"] = sae.W_dec * gain[:, None]
    loaded = {CENTRED: False} | (dict(normalisation.loaded) if normalisation else {})
    of_heads = str(about.get("hook_name")).endswith(HEADS)
    loaded |= {FOLDED: False} if of_heads else {}
    card = {
        "architecture": kind.sae_lens,
        "d_in": sae.d_in,
        "d_sae": sae.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": normalisation.sae_lens if normalisation else "none",
        "reshape_activations": HEADS if of_heads else "none",
        "metadata": {"sae_lens_version": VERSION, **about, "model_from_pretrained_kwargs": loaded},
    }
    return tensors, card | {name: getattr(sae, name) for name in kind.settings} | dict(kind.card)


def read_sae_lens(source: Source) -> Foreign:
    """A dictionary of any version, by what its card says."""
    card, about = source.card, as_object(source.card.get("metadata")) or source.card
    k = agreed({"k": card.get("k"), "activation_fn_kwargs.k": as_object(card.get("activation_fn_kwargs")).get("k")})
    kind = _architecture(source, k)
    hook = agreed({name: about.get(name) for name in ("hook_name", "hook_point")})
    hook = hook if isinstance(hook, str) else None
    reshaped = (None, "none", HEADS) if hook and hook.endswith(HEADS) else (None, "none")
    check_setting("reshape_activations", card.get("reshape_activations"), *reshaped)
    check_setting("hook_head_index", about.get("hook_head_index", about.get("hook_point_head_index")), None)
    check_setting("hook_name_out", about.get("hook_name_out"), None, about.get("hook_name"))

    W_enc, b_enc, W_dec, b_dec = source.matrices("W_enc", "W_dec", None if kind == "gated" else "b_enc", "b_dec")
    n_latents, rescaled = len(W_dec), bool(card.get("rescale_acts_by_decoder_norm"))
    raw = Raw(W_enc, b_enc, _finetuned(source, W_dec), b_dec, subtracts=bool(card.get("apply_b_dec_to_input", True)))
    if kind == "topk":
        raw = replace(raw, k=positive_whole("k", k), rescaled=rescaled)
    elif kind == "gated":
        raw = replace(raw, gate=tuple(source.tensor(name, n_latents) for name in ("b_gate", "b_mag", "r_mag")))
    elif source.has("topk_threshold"):
        threshold = calibrated("topk_threshold", source.tensor("topk_threshold"), unset=0.0)
        raw = replace(raw, threshold=threshold.expand(n_latents), rescaled=rescaled)
    elif source.has("log_threshold"):
        raw = replace(raw, threshold=check_numbers("threshold", source.tensor("log_threshold", n_latents).exp()))
    elif kind != "standard":
        raw = replace(raw, threshold=source.tensor("threshold", n_latents))
    agreed({"hook_layer": about.get("hook_layer"), f"the layer of {hook}": layer_in(hook)})
    bos = about.get("prepend_bos", True if about is card else None)
    dictionary = _as_loaded(source, about, site_of(hook or ""), _normalised(source, convert(raw)))
    return foreign_of(dictionary, "SAELens", hook, about.get("model_name"), bos, about.get("context_size"))


def _architecture(source: Source, k: Any) -> str:
    """SAELens' name of the kind, on which all that the card says and the tensors must agree.

    A TopK was an activation function of the standard architecture before version 6.
    """
    stated = source.card.get("architecture")
    activation = source.card.get("activation_fn") or source.card.get("activation_fn_str") or "relu"
    check_setting("activation_fn", activation, "relu", "topk")
    marks = {name: kinds for name, kinds in _MARKS.items() if name in source.values}
    implied = next(iter(marks.values()), ("standard",))[0]
    kind = "topk" if activation == "topk" and stated in (None, "standard") else stated or implied
    check_setting("architecture", kind, *(known.sae_lens for known in SAES), "batchtopk", "matryoshka_batchtopk")
    against = [f"a tensor {name}" for name, kinds in marks.items() if kind not in kinds]
    if k is not None and kind in ("standard", "gated"):  # as a ReLU it would be wrong in silence
        against.append(f"k = {k!r}")
    if activation == "topk" and kind != "topk":
        against.append("activation_fn = 'topk'")
    if against:
        raise contradiction(f"architecture = {stated!r}", against[0])
    return kind


def _finetuned(source: Source, W_dec: Tensor) -> Tensor:
    """The decoder times the factors that older versions of SAELens fitted to the codes afterwards."""
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        factor = source.tensor(name, len(W_dec)) if name in source.values else torch.ones(1)
        if not torch.allclose(factor, torch.ones_like(factor)):
            if not source.card.get("finetuning_scaling_factor"):
                raise UserError(f"it holds a {name}, of which its cfg.json says that it is not used")
            W_dec = W_dec * factor[:, None]
    return W_dec


def _normalised(source: Source, sae: SAE) -> Autoencoder:
    """The dictionary of activations, given the one of activations as SAELens normalises them."""
    kind = source.card.get("normalize_activations") or "none"
    by_token = {known.sae_lens: known.type for known in NORMALISATIONS}
    check_setting("normalize_activations", kind, *by_token, "expected_average_only_in", True)
    if kind == "none":
        return sae
    if kind in by_token:
        return by_token[kind](sae)
    scaler = source.folder / "activation_scaler.json"
    scale = read_json(scaler).get("scaling_factor") if scaler.is_file() else None
    if not isinstance(scale, (int, float)) or not scale > 0:
        raise UserError(
            "it has normalize_activations = 'expected_average_only_in', and the factor is not in the file; "
            "save it with SAELens' save_inference_model, or put the activation_scaler.json of its training beside it"
        )
    return sae.unscaled(scale)


def _as_loaded(source: Source, about: dict[str, Any], site: Site | None, dictionary: Autoencoder) -> Autoencoder:
    """The dictionary of a model's own activations, given the one of the model as TransformerLens loaded it.

    Cards of September 2024 and later say how; what training did before is not known, and a warning says so.
    """
    kwargs = about.get("model_from_pretrained_kwargs")
    strange = sorted(name for name, value in as_object(kwargs).items() if value and name not in _SAME_ACTIVATIONS)
    if strange:
        raise UserError(f"its model was loaded with {', '.join(strange)}, which cannot be represented here")
    if site and site.stream is Stream.ATTN_Z and as_object(kwargs).get(FOLDED):
        raise UserError(f"its model was loaded with {FOLDED}, so that its heads lack their biases; it cannot be read")
    if isinstance(dictionary, LayerNormed) or (site and site.stream in (Stream.ATTN_Z, Stream.MLP_HIDDEN)):
        return dictionary  # the mean is out already, or was never in
    if kwargs is None and about is source.card:
        log.warning(
            "%s: from before SAELens kept how it loaded the model; if with %s, as gpt2-small-res-jb was, "
            'add "model_from_pretrained_kwargs": {"%s": true} to its cfg.json',
            *(source.path, CENTRED, CENTRED),
        )
    if not as_object(kwargs).get(CENTRED):
        return dictionary
    if isinstance(dictionary, Normed):
        raise UserError(f"it has {CENTRED} and normalised activations, which cannot be represented here together")
    return Centred(dictionary)
