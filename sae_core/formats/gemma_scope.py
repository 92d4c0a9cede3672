"""Gemma Scope (Google)."""

from sae_core.formats.foreign import Foreign, agreed, check_setting, foreign_of
from sae_core.formats.hook_names import layer_in, place_of_gemma_scope
from sae_core.formats.tensor_files import Source
from sae_core.formats.unit_norm import Raw, convert


def read_gemma_scope(source: Source) -> Foreign:
    """Gemma Scope: JumpReLU of x itself. The first release calls the matrices `W_enc`, the second `w_enc`."""
    check_setting("architecture", source.card.get("architecture"), None, "jump_relu")
    check_setting("hf_hook_point_out", source.card.get("hf_hook_point_out"), None)
    names = ("W_enc", "W_dec") if source.has("W_enc") else ("w_enc", "w_dec")
    W_enc, b_enc, W_dec, b_dec = source.matrices(*names, "b_enc", "b_dec")
    raw = Raw(W_enc, b_enc, W_dec, b_dec, threshold=source.tensor("threshold", len(W_dec)), subtracts=False)
    place, model = place_of_gemma_scope(source.path)
    stated = str(source.card.get("hf_hook_point_in") or "").removesuffix(".output") or None
    agreed({"the layer of its hf_hook_point_in": layer_in(stated), "that of its folder": layer_in(place)})
    return foreign_of(convert(raw), "Gemma Scope", stated or place, model or source.card.get("model_name"), True, 1024)
