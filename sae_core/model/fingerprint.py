"""By what a model is known again: its configuration, every weight, and its tokenizer.

A fingerprint is text, `config:… weights:… tokenizer:…`, so that where two differ they say in which part. Equal on every
device and in every precision that holds the same numbers. Sets that were made before there were digests have one word:
a hash of the architecture and of a sample of the weights (`sampled`).
"""

import hashlib
import re
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from sae_core.digest import digest, other_parts

_IDLE = re.compile(
    r"_|architectures|pretraining|tie_|task_specific|finetuning|problem_type|"
    r".*(dropout|dtype|version|initializer|token_id|label|use_cache)"
)
"""Beginnings of the entries of a configuration that change nothing that a model computes."""
_WORDS, _AT_ONCE = 8192, 16
"""Words of the vocabulary that are tokenised, and how many in one text."""


@runtime_checkable
class Fingerprinted(Protocol):
    """A language model, which this module must not import."""

    bridge: Any

    def fingerprint(self) -> str: ...


class Identity:
    """The fingerprint of a model, made again only where its tensors were written to or replaced.

    A write through `.data`, which PyTorch does not count, is seen where it changes the sample; what outlives the
    process asks for `weights_digest`, too.
    """

    def __init__(self):
        self._made: tuple[object, str] | None = None

    def fingerprint(self, bridge: Any, tokenizer: Any) -> str:
        """The parts with their digests."""
        model, state = bridge.original_model, _state(bridge.original_model)
        if any(weight.is_inference() for _, weight in state):
            self._made = None  # PyTorch does not count what is written to such weights
        version: list[object] = [
            (name, weight.data_ptr(), None if weight.is_inference() else weight._version) for name, weight in state
        ]
        version += [sampled(bridge.cfg, model), id(tokenizer)]
        if self._made is None or self._made[0] != version:
            config, read = digest(_mattering(_declared(model.config))), digest(_reading(tokenizer, bridge.cfg.d_vocab))
            parts = {"config": config[:16], "weights": weights_digest(model), "tokenizer": read[:16]}
            self._made = version, " ".join(f"{name}:{part}" for name, part in parts.items())
        return self._made[1]


def weights_digest(model: nn.Module) -> str:
    """A digest of every weight as it is now, however it was written to."""
    return digest(dict(_state(model)))[:16]


def parts_other_than(fingerprint: str, model: Fingerprinted) -> list[str]:
    """The parts in which a model is another than the one of that fingerprint; none where it is the same."""
    if ":" in fingerprint:
        now = model.fingerprint()
        return other_parts(fingerprint, now) or ([] if fingerprint == now else ["fingerprint"])
    same = fingerprint == sampled(model.bridge.cfg, model.bridge.original_model)
    return [] if same else ["config or weights"]


def sampled(config: Any, model: nn.Module) -> str:
    """A short hash of the architecture in TransformerLens' words, and of about 512 numbers of every weight."""
    rope = getattr(model.config, "rope_parameters", None)
    shape = (config.n_layers, config.d_model, config.d_vocab, config.n_heads, config.n_key_value_heads, config.act_fn)
    parallel = bool(getattr(config, "parallel_attn_mlp", False))
    rest = (config.normalization_type, config.eps, config.positional_embedding_type, parallel)
    total = hashlib.sha256(repr((shape, rest, sorted((rope or {}).items()))).encode())
    for name, weight in _state(model):
        sample = weight.flatten()[:: max(1, weight.numel() // 512)].float().cpu()
        total.update(f"{name} {tuple(weight.shape)}".encode())
        total.update(sample.numpy().tobytes())
    return total.hexdigest()[:16]


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every weight, by the name that it has where no library wraps the model; some stand there twice, under two."""
    return [(name.replace("_original_component.", ""), x.detach()) for name, x in sorted(model.state_dict().items())]


def _declared(config: Any) -> dict[str, Any]:
    """The entries of a configuration that its class knows; others are notes, which nothing reads."""
    entries = config.to_dict()
    try:
        known = type(config)().to_dict()
    except Exception:  # classes may ask for arguments, and refuse what is missing with any error
        return entries
    return {name: value for name, value in entries.items() if name in known}


def _mattering(config: Any) -> Any:
    """A configuration without what changes nothing, and without options that are off: later versions add such."""
    if not isinstance(config, dict):
        return config
    return {str(name): _mattering(value) for name, value in config.items() if value and not _IDLE.match(str(name))}


def _reading(tokenizer: Any, n_vocab: int) -> tuple[Any, ...]:
    """The vocabulary, and the ids of a text of its words: what a tokenizer does, whatever its library calls it.

    Words beyond the model's vocabulary are left out: those are tokens for padding that somebody added.
    """
    vocabulary = {word: i for word, i in getattr(tokenizer, "get_vocab", dict)().items() if i < n_vocab}
    words = sorted(vocabulary)[:: max(1, len(vocabulary) // _WORDS)]
    texts = [" ".join(words[start : start + _AT_ONCE]) for start in range(0, len(words), _AT_ONCE)]
    return vocabulary, tokenizer(texts)["input_ids"] if texts else ()
