"""sparsify (EleutherAI): TopK autoencoders, one folder per module."""

from pathlib import Path

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.saes import TopKSAE
from sae_core.errors import UserError
from sae_core.files import read_json, user_path, write_json, write_tensors
from sae_core.formats.foreign import Foreign, check_setting, foreign_of, positive_whole
from sae_core.formats.hook_names import place_in
from sae_core.formats.tensor_files import Source
from sae_core.formats.unit_norm import Raw, convert


def read_sparsify(source: Source) -> Foreign:
    """sparsify (EleutherAI): TopK, always of x - b_dec."""
    card = source.card
    check_setting("activation", card.get("activation", "topk"), "topk")
    for name in ("transcode", "skip_connection", "signed", "embed_skip", "gram_lookup"):
        check_setting(name, card.get(name, False), False)
    decoder = "decoder.weight" if source.has("decoder.weight") else "W_dec"
    raw = Raw(
        *source.matrices("encoder.weight", decoder, "encoder.bias", "b_dec"), k=positive_whole("k", card.get("k"))
    )
    run = source.folder.parent / "config.json"
    run = read_json(run) if run.is_file() else {}
    place = place_in(source.folder.name)
    return foreign_of(convert(raw), "sparsify", place, run.get("model"), None, run.get("ctx_len"))


def save_sparsify(sae: Dictionary, folder: str | Path) -> None:
    """Write a TopK autoencoder as sparsify reads it; `load_foreign` is the inverse.

    Sparsify takes the site from the folder's name: the Hugging Face module, such as `layers.3`. Raises
    `UserError` for other architectures, which it does not have.
    """
    if type(sae) is not TopKSAE or sae.gain is not None:
        what = "a TopK dictionary with gains" if type(sae) is TopKSAE else f"a {type(sae).__name__}"
        raise UserError(f"{what} is not representable in sparsify, which has TopK autoencoders only")
    tensors = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    card = {
        "activation": "topk",
        "expansion_factor": max(1, sae.n_latents // sae.d_in),
        "normalize_decoder": True,
        "num_latents": sae.n_latents,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.d_in,
    }
    folder = user_path(folder)
    (folder / "cfg.json").unlink(missing_ok=True)  # new tensors never go with an old card
    write_tensors(folder / "sae.safetensors", tensors)
    write_json(folder / "cfg.json", card)
