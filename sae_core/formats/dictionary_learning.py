"""dictionary_learning (Marks, Karvonen, Mueller)."""

from dataclasses import replace

from sae_core.errors import UserError
from sae_core.formats.foreign import (
    Foreign,
    agreed,
    as_object,
    calibrated,
    check_setting,
    foreign_of,
    plain,
    positive_whole,
)
from sae_core.formats.hook_names import layer_in, place_in
from sae_core.formats.tensor_files import Source
from sae_core.formats.unit_norm import Raw, convert

_CLASSES = {
    "AutoEncoder": ("encoder.weight", "decoder.weight", "encoder.bias", "bias"),
    "AutoEncoderNew": ("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias"),
    "AutoEncoderTopK": ("encoder.weight", "decoder.weight", "encoder.bias", "b_dec"),
    "BatchTopKSAE": ("encoder.weight", "decoder.weight", "encoder.bias", "b_dec"),
    "MatryoshkaBatchTopKSAE": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "JumpReluAutoEncoder": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "GatedAutoEncoder": ("encoder.weight", "decoder.weight", None, "decoder_bias"),
}
"""Names of W_enc, W_dec, b_enc and b_dec, by class."""


def read_dictionary_learning(source: Source) -> Foreign:
    """A dictionary of any of the classes there; BatchTopK by its threshold."""
    trainer, buffer = as_object(source.card.get("trainer")), as_object(source.card.get("buffer"))
    check_setting("io", buffer.get("io", "out"), "out")
    kind = trainer.get("dict_class") or _class_by_names(source)
    check_setting("dict_class", kind, *_CLASSES)
    raw = Raw(*source.matrices(*_CLASSES[kind]), subtracts=kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"))
    n_latents = len(raw.W_dec)
    if "TopK" in kind:
        source.read.update(("k", "threshold", "group_sizes"))
    if kind == "AutoEncoderTopK":
        k = agreed({"a tensor k": plain(source.values.get("k")), "k": trainer.get("k")})
        raw = replace(raw, k=positive_whole("k", k))
    elif kind == "JumpReluAutoEncoder":
        raw = replace(raw, threshold=source.tensor("threshold", n_latents))
    elif kind == "GatedAutoEncoder":
        raw = replace(raw, gate=tuple(source.tensor(name, n_latents) for name in ("gate_bias", "mag_bias", "r_mag")))
    elif "TopK" in kind:
        threshold = calibrated("threshold", source.tensor("threshold"), unset=-1.0)
        raw = replace(raw, threshold=threshold.expand(n_latents))
    place, n_ctx = place_in(str(trainer.get("submodule_name") or source.folder.parent.name)), buffer.get("ctx_len")
    agreed({"layer": trainer.get("layer"), f"the layer of {place}": layer_in(place)})
    return foreign_of(convert(raw), "dictionary-learning", place, trainer.get("lm_name"), None, n_ctx)


def _class_by_names(source: Source) -> str:
    """The class that has these tensors, where no config.json names it."""
    if source.has("W_enc"):
        return "MatryoshkaBatchTopKSAE" if source.has("group_sizes") else "JumpReluAutoEncoder"
    if source.has("gate_bias"):
        return "GatedAutoEncoder"
    if source.has("bias"):
        return "AutoEncoder"
    raise UserError("its config.json does not name a dict_class, and its tensors fit more than one")
