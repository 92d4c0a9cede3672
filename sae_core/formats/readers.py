"""Other people's sparse autoencoders: SAELens, OpenAI, Gemma Scope, sparsify, dictionary-learning.

Which format a file has is read from its tensors and from the JSON beside it, never from a version. Each
reader brings the tensors into our orientation; `folding.py` makes the directions unit vectors; what cannot
be represented is refused by name. No pickled object is ever loaded.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_core.dictionaries.dictionary import Dictionary
from sae_core.dictionaries.kinds import CENTRED, NORMALISATIONS, SAES
from sae_core.dictionaries.normalised import Centred, LayerNormed, Normed
from sae_core.dictionaries.saes import SAE, TopKSAE
from sae_core.errors import UserError
from sae_core.files import read_json, write_json, write_tensors
from sae_core.formats import hook_names as places
from sae_core.formats.tensor_files import Source, listed, locate, read
from sae_core.formats.unit_norm import Raw, convert
from sae_core.sites import Site, Stream

log = logging.getLogger(__name__)
_SAME_ACTIVATIONS = frozenset(
    "center_writing_weights fold_ln fold_value_biases center_unembed refactor_factored_attn_matrices "
    "dtype torch_dtype device device_map n_devices move_to_device trust_remote_code attn_implementation "
    "low_cpu_mem_usage local_files_only cache_dir token default_prepend_bos default_padding_side n_ctx "
    "first_n_layers "
    "revision checkpoint_index checkpoint_value".split()
)
"""What else a model may have been loaded with: activations at our sites are the same, or (the last line) those of
other weights, which are then the ones to give."""


@dataclass(frozen=True, eq=False)
class Foreign:
    """A dictionary from elsewhere, and what its files say about where it belongs (None: nothing)."""

    dictionary: Dictionary
    format: str
    site: Site | None = None
    model_name: str | None = None
    prepend_bos: bool | None = None
    n_ctx: int | None = None


def load_foreign(path: Path) -> Foreign:
    """The dictionary in a file, or in a folder that holds one.

    Raises `UserError`, which names the file, for one that is missing, damaged, of unknown schema, or not
    representable.
    """
    path = locate(Path(path).expanduser())
    try:
        source = read(path)
        foreign = _reader(source)(source)
        unread = sorted(map(str, source.values.keys() - source.read))
        if unread:
            raise UserError(f"it also holds {', '.join(unread[:12])}, which cannot be represented here")
        return foreign
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


# ---- export ----------------------------------------------------------------------------------------


def save_sparsify(sae: Dictionary, folder: Path) -> None:
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
    (folder / "cfg.json").unlink(missing_ok=True)  # new tensors never go with an old card
    write_tensors(folder / "sae.safetensors", tensors)
    write_json(folder / "cfg.json", card)


# ---- which format ---------------------------------------------------------------------------------


def _only(name: str, value: Any, *allowed: Any) -> None:
    """Raise `UserError`, naming the setting, unless its value is one that we can represent."""
    if value not in allowed:
        raise UserError(f"it has {name} = {' '.join(repr(value).split())[:80]}, which cannot be represented here")


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(name: str, value: Any) -> int:
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"its {name} is {value!r}; expected a positive whole number")
    return value


def _foreign(dictionary: Dictionary, name: str, site: Site | None, model: Any, bos: Any, n_ctx: Any) -> Foreign:
    """What the files say, as far as it is of the type that it should be."""
    return Foreign(
        dictionary,
        name,
        site,
        model if isinstance(model, str) else None,
        bos if isinstance(bos, bool) else None,
        n_ctx if isinstance(n_ctx, int) else None,
    )


def _reader(source: Source) -> Callable[[Source], Foreign]:
    """Who can read a file, by the names of its tensors and the keys of its card."""
    card, values = source.card, source.values
    if {"ae", "optimizer"} <= values.keys():
        raise UserError("it is a backup from the middle of a dictionary_learning run; give the finished ae.pt")
    if source.has("pre_bias", "latent_bias"):
        return _openai
    if source.has("w_enc", "w_dec") or (source.path.suffix == ".npz" and source.has("W_enc", "W_dec")):
        return _gemma_scope
    if "trainer" in card or source.has("bias", "encoder.weight") or source.has("r_mag", "gate_bias"):
        return _dictionary_learning
    if source.path.suffix != ".safetensors" and source.has("W_enc", "W_dec", "threshold"):
        return _dictionary_learning
    if source.has("encoder.weight") and ("expansion_factor" in card or "num_latents" in card):
        return _sparsify
    if "d_sae" in card or "hook_point" in card:
        return _sae_lens
    beside = "" if card else "; there is no cfg.json or config.json beside it, which might say"
    raise UserError(f"its schema is not known here (it holds {listed(values)}){beside}")


# ---- one reader per format -------------------------------------------------------------------------


def _sae_lens(source: Source) -> Foreign:
    """SAELens: version 6, whose card nests `metadata`, older ones, which are flat, and training checkpoints."""
    card, about = source.card, _object(source.card.get("metadata")) or source.card
    activation = card.get("activation_fn") or card.get("activation_fn_str") or "relu"
    kind = "topk" if activation == "topk" else card.get("architecture") or "standard"
    if not card.get("architecture") and activation == "relu" and "k" in card:  # as a ReLU it would be wrong in silence
        raise UserError("its card gives a k but no architecture; expected 'topk'")
    _only("architecture", kind, *(ours.sae_lens for ours in SAES), "batchtopk", "matryoshka_batchtopk")
    _only("activation_fn", activation, "relu", "topk")
    _only("reshape_activations", card.get("reshape_activations"), None, "none")
    _only("hook_head_index", about.get("hook_head_index", about.get("hook_point_head_index")), None)
    _only("hook_name_out", about.get("hook_name_out"), None, about.get("hook_name"))

    W_enc, b_enc, W_dec, b_dec = source.matrices("W_enc", "W_dec", None if kind == "gated" else "b_enc", "b_dec")
    n_latents, rescaled = len(W_dec), bool(card.get("rescale_acts_by_decoder_norm"))
    raw = Raw(W_enc, b_enc, _finetuned(source, W_dec), b_dec, subtracts=bool(card.get("apply_b_dec_to_input", True)))
    if kind == "topk":
        k = card.get("k") or _object(card.get("activation_fn_kwargs")).get("k")
        raw = replace(raw, k=_whole("k", k), rescaled=rescaled)
    elif kind == "gated":
        raw = replace(raw, gate=tuple(source.tensor(name, n_latents) for name in ("b_gate", "b_mag", "r_mag")))
    elif source.has("topk_threshold"):
        threshold = _calibrated("topk_threshold", source.tensor("topk_threshold"), unset=0.0)
        raw = replace(raw, threshold=threshold.expand(n_latents), rescaled=rescaled)
    elif source.has("log_threshold"):
        raw = replace(raw, threshold=source.tensor("log_threshold", n_latents).exp())
    elif kind != "standard":
        raw = replace(raw, threshold=source.tensor("threshold", n_latents))
    hook = about.get("hook_name") or about.get("hook_point")
    site = places.site_of_hook(str(hook)) if hook else None
    bos = about.get("prepend_bos", True if about is card else None)
    dictionary = _as_loaded(source, about, site, _normalised(source, convert(raw)))
    return _foreign(dictionary, "SAELens", site, about.get("model_name"), bos, about.get("context_size"))


def _finetuned(source: Source, W_dec: Tensor) -> Tensor:
    """The decoder times the factors that older versions of SAELens fitted to the codes afterwards."""
    for name in ("scaling_factor", "finetuning_scaling_factor"):
        factor = source.tensor(name, len(W_dec)) if name in source.values else torch.ones(1)
        if not torch.allclose(factor, torch.ones_like(factor)):
            if not source.card.get("finetuning_scaling_factor"):
                raise UserError(f"it holds a {name}, of which its cfg.json says that it is not used")
            W_dec = W_dec * factor[:, None]
    return W_dec


def _normalised(source: Source, sae: SAE) -> Dictionary:
    """The dictionary of activations, given the one of activations as SAELens normalises them."""
    kind = source.card.get("normalize_activations") or "none"
    by_token = {ours.sae_lens: ours.type for ours in NORMALISATIONS}
    _only("normalize_activations", kind, *by_token, "expected_average_only_in", True)
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


def _as_loaded(source: Source, about: dict[str, Any], site: Site | None, dictionary: Dictionary) -> Dictionary:
    """The dictionary of a model's own activations, given the one of the model as TransformerLens loaded it.

    Cards of September 2024 and later say how; what training did before is not known, and a warning says so.
    """
    kwargs = about.get("model_from_pretrained_kwargs")
    strange = sorted(name for name, value in _object(kwargs).items() if value and name not in _SAME_ACTIVATIONS)
    if strange:
        raise UserError(f"its model was loaded with {', '.join(strange)}, which cannot be represented here")
    if isinstance(dictionary, LayerNormed) or (site and site.stream is Stream.MLP_HIDDEN):
        return dictionary  # the mean is out already, or was never in
    if kwargs is None and about is source.card:
        log.warning(
            "%s: from before SAELens kept how it loaded the model; if with %s, as gpt2-small-res-jb was, "
            'add "model_from_pretrained_kwargs": {"%s": true} to its cfg.json',
            *(source.path, CENTRED, CENTRED),
        )
    if not _object(kwargs).get(CENTRED):
        return dictionary
    if isinstance(dictionary, Normed):
        raise UserError(f"it has {CENTRED} and normalised activations, which cannot be represented here together")
    return Centred(dictionary)


_OPENAI_REST = (
    "activation",
    "activation_state_dict",
    "stats_last_nonzero",
    "latents_activation_frequency",
    "latents_mean_square",
)


def _openai(source: Source) -> Foreign:
    """OpenAI's `sparse_autoencoder`: ReLU, or TopK, which there means a layer norm before it."""
    kind, state = source.values.get("activation", "ReLU"), _object(source.values.get("activation_state_dict"))
    source.read.update(_OPENAI_REST)
    _only("activation", kind, "ReLU", "TopK")
    _only("postact_fn", state.get("postact_fn", "ReLU"), "ReLU")
    raw = Raw(*source.matrices("encoder.weight", "decoder.weight", "latent_bias", "pre_bias"))
    if kind == "TopK":
        raw = replace(raw, k=_whole("k", state.get("k")))
    dictionary = LayerNormed(convert(raw)) if kind == "TopK" else convert(raw)
    model = "gpt2" if "gpt2-small" in source.folder.parts else None
    return _foreign(dictionary, "OpenAI", places.site_of_openai(source.path), model, None, None)


def _gemma_scope(source: Source) -> Foreign:
    """Gemma Scope: JumpReLU of x itself. The first release calls the matrices `W_enc`, the second `w_enc`."""
    _only("hf_hook_point_out", source.card.get("hf_hook_point_out"), None)
    names = ("W_enc", "W_dec") if source.has("W_enc") else ("w_enc", "w_dec")
    W_enc, b_enc, W_dec, b_dec = source.matrices(*names, "b_enc", "b_dec")
    raw = Raw(W_enc, b_enc, W_dec, b_dec, threshold=source.tensor("threshold", len(W_dec)), subtracts=False)
    site, model = places.site_of_gemma_scope(source.path)
    return _foreign(convert(raw), "Gemma Scope", site, model or source.card.get("model_name"), True, 1024)


def _sparsify(source: Source) -> Foreign:
    """sparsify (EleutherAI): TopK, always of x - b_dec."""
    card = source.card
    _only("activation", card.get("activation", "topk"), "topk")
    for name in ("transcode", "skip_connection", "signed", "embed_skip", "gram_lookup"):
        _only(name, card.get(name, False), False)
    decoder = "decoder.weight" if source.has("decoder.weight") else "W_dec"
    raw = Raw(*source.matrices("encoder.weight", decoder, "encoder.bias", "b_dec"), k=_whole("k", card.get("k")))
    run = source.folder.parent / "config.json"
    run = read_json(run) if run.is_file() else {}
    site = places.site_of_module(source.folder.name)
    return _foreign(convert(raw), "sparsify", site, run.get("model"), None, run.get("ctx_len"))


_DICTIONARY_LEARNING = {
    "AutoEncoder": ("encoder.weight", "decoder.weight", "encoder.bias", "bias"),
    "AutoEncoderNew": ("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias"),
    "AutoEncoderTopK": ("encoder.weight", "decoder.weight", "encoder.bias", "b_dec"),
    "BatchTopKSAE": ("encoder.weight", "decoder.weight", "encoder.bias", "b_dec"),
    "MatryoshkaBatchTopKSAE": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "JumpReluAutoEncoder": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "GatedAutoEncoder": ("encoder.weight", "decoder.weight", None, "decoder_bias"),
}
"""Names of W_enc, W_dec, b_enc and b_dec, by class."""


def _dictionary_learning(source: Source) -> Foreign:
    """dictionary_learning (Marks, Karvonen, Mueller); BatchTopK by its threshold."""
    trainer, buffer = _object(source.card.get("trainer")), _object(source.card.get("buffer"))
    _only("io", buffer.get("io", "out"), "out")
    kind = trainer.get("dict_class") or _class_by_names(source)
    _only("dict_class", kind, *_DICTIONARY_LEARNING)
    raw = Raw(
        *source.matrices(*_DICTIONARY_LEARNING[kind]), subtracts=kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    )
    n_latents = len(raw.W_dec)
    if "TopK" in kind:
        source.read.update(("k", "threshold", "group_sizes"))
    if kind == "AutoEncoderTopK":
        raw = replace(raw, k=_whole("k", source.values.get("k", trainer.get("k"))))
    elif kind == "JumpReluAutoEncoder":
        raw = replace(raw, threshold=source.tensor("threshold", n_latents))
    elif kind == "GatedAutoEncoder":
        raw = replace(raw, gate=tuple(source.tensor(name, n_latents) for name in ("gate_bias", "mag_bias", "r_mag")))
    elif "TopK" in kind:
        threshold = _calibrated("threshold", source.tensor("threshold"), unset=-1.0)
        raw = replace(raw, threshold=threshold.expand(n_latents))
    name = str(trainer.get("submodule_name") or source.folder.parent.name)
    site, n_ctx = places.site_of_module(name), buffer.get("ctx_len")
    return _foreign(convert(raw), "dictionary-learning", site, trainer.get("lm_name"), None, n_ctx)


def _class_by_names(source: Source) -> str:
    """The class whose tensors these are, where no config.json says it."""
    if source.has("W_enc"):
        return "MatryoshkaBatchTopKSAE" if source.has("group_sizes") else "JumpReluAutoEncoder"
    if source.has("gate_bias"):
        return "GatedAutoEncoder"
    if source.has("bias"):
        return "AutoEncoder"
    raise UserError("its config.json does not name a dict_class, and its tensors fit more than one")


def _calibrated(name: str, threshold: Tensor, *, unset: float) -> Tensor:
    if threshold.item() <= unset:
        raise UserError(
            f"its {name} was never set (it is {threshold.item():g}), so that its codes would depend on the batch; "
            "set it to the mean over batches of the smallest activation kept, and save it again"
        )
    return threshold
