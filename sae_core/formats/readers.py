"""Other people's sparse autoencoders: SAELens, OpenAI, Gemma Scope, sparsify, dictionary-learning.

Which format a file has is read from its tensors and from the JSON beside it, never from a version. Each
reader brings the tensors into our orientation; `unit_norm.py` makes the directions unit vectors; what cannot
be represented is refused by name. No pickled object is ever loaded.
"""

from collections.abc import Callable
from pathlib import Path

from sae_core.errors import UserError
from sae_core.files import reading, user_path
from sae_core.formats.blocks import BLOCKS
from sae_core.formats.dictionary_learning import read_dictionary_learning
from sae_core.formats.foreign import Foreign
from sae_core.formats.gemma_scope import read_gemma_scope
from sae_core.formats.openai import read_openai
from sae_core.formats.sae_lens import read_sae_lens
from sae_core.formats.sparsify import read_sparsify
from sae_core.formats.tensor_files import Source, listed, locate, read


def load_foreign(path: str | Path) -> Foreign:
    """The dictionary in a file, or in a folder that holds one.

    Raises `UserError`, which names the file, for one that is missing, damaged, of unknown schema, or not
    representable.
    """
    path = locate(user_path(path))
    with reading(path):
        source = read(path)
        foreign = _reader(source)(source)
        unread = sorted(map(str, source.values.keys() - source.read))
        if unread:
            raise UserError(f"it also holds {', '.join(unread[:12])}, which cannot be represented here")
        return foreign


def _reader(source: Source) -> Callable[[Source], Foreign]:
    """Who can read a file, by the names of its tensors and the keys of its card."""
    card, values = source.card, source.values
    if source.path.name == BLOCKS:
        return read_sae_lens
    if {"ae", "optimizer"} <= values.keys():
        raise UserError("it is a backup from the middle of a dictionary_learning run; give the finished ae.pt")
    if source.has("pre_bias", "latent_bias"):
        return read_openai
    if source.has("w_enc", "w_dec") or (source.path.suffix == ".npz" and source.has("W_enc", "W_dec")):
        return read_gemma_scope
    if "trainer" in card or source.has("bias", "encoder.weight") or source.has("r_mag", "gate_bias"):
        return read_dictionary_learning
    if source.path.suffix != ".safetensors" and source.has("W_enc", "W_dec", "threshold"):
        return read_dictionary_learning
    if source.has("encoder.weight") and ("expansion_factor" in card or "num_latents" in card):
        return read_sparsify
    if "d_sae" in card or "hook_point" in card:
        return read_sae_lens
    beside = "" if card else "; there is no cfg.json or config.json beside it, which might say"
    raise UserError(f"its schema is not known here (it holds {listed(values)}){beside}")
