"""OpenAI's `sparse_autoencoder`."""

from dataclasses import replace

from sae_core.dictionaries.normalised import LayerNormed
from sae_core.formats.foreign import Foreign, as_object, check_setting, contradiction, foreign_of, positive_whole
from sae_core.formats.hook_names import place_of_openai
from sae_core.formats.tensor_files import Source
from sae_core.formats.unit_norm import Raw, convert

_REST = (
    "activation",
    "activation_state_dict",
    "stats_last_nonzero",
    "latents_activation_frequency",
    "latents_mean_square",
)


def read_openai(source: Source) -> Foreign:
    """OpenAI's `sparse_autoencoder`: ReLU, or TopK, which there means a layer norm before it."""
    kind, state = source.values.get("activation", "ReLU"), as_object(source.values.get("activation_state_dict"))
    source.read.update(_REST)
    check_setting("activation", kind, "ReLU", "TopK")
    check_setting("postact_fn", state.get("postact_fn", "ReLU"), "ReLU")
    if kind == "ReLU" and state.get("k") is not None:
        raise contradiction("activation = 'ReLU'", f"k = {state['k']!r}")
    raw = Raw(*source.matrices("encoder.weight", "decoder.weight", "latent_bias", "pre_bias"))
    if kind == "TopK":
        raw = replace(raw, k=positive_whole("k", state.get("k")))
    dictionary = LayerNormed(convert(raw)) if kind == "TopK" else convert(raw)
    model = "gpt2" if "gpt2-small" in source.folder.parts else None
    return foreign_of(dictionary, "OpenAI", place_of_openai(source.path), model, None, None)
