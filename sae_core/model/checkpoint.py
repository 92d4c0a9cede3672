"""A checkpoint as a model and its tokenizer: every weight comes from its files, or it is refused.

Transformers fills a weight that it does not find with random numbers, and a tokenizer's class names a BOS that no file
holds; both would give results of another model. What cannot be read as full matrices (quantised weights) is refused
by name; LoRA adapters are merged into the model that they were trained on. A GGUF file's weights, which may be
rounded to a few bits, are made full matrices by Transformers.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast, get_args

import torch
from torch import nn

from sae_core.errors import UserError, no_such
from sae_core.files import read_json, reading
from sae_core.formats.tensor_files import PICKLED
from sae_core.model.hub import model_source
from sae_core.model.precision import Precision
from sae_core.room import out_of_memory

_SIZE = re.compile(
    r"(hidden|vocab)_size|n_embd|d_model|(n|num|num_hidden)_layers?|(n|num_attention|num_key_value)_heads?"
)
"""What families call a model's sizes."""


@contextmanager
def in_one_line(problem: str) -> Iterator[None]:
    """Let whatever is raised within the block be a `UserError` that begins with the problem, but for lack of memory.

    Transformers, and what it imports, raise anything on a file, a package or a token that they do not know.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or out_of_memory(error):
            raise
        raise UserError(f"{problem}: {' '.join(str(error).split())[:400] or type(error).__name__}") from error


def load_checkpoint(source: Path | str, name: str, *, device: str, dtype: str) -> tuple[Any, Any, int | None]:
    """(Transformers model, tokenizer, BOS) of a directory in Hugging Face layout, of a GGUF file, or of a hub name.

    Raises `UserError` for what is damaged, quantised, or lacks weights or a tokenizer.
    """
    if dtype not in get_args(Precision):
        raise no_such("dtype", dtype, get_args(Precision))
    with in_one_line(f"{name} could not be loaded as a language model"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # of files that are refused anyway
        adapter = _beside(source, "adapter_config.json")
        try:
            model = _merged(source, adapter, name, device, dtype) if adapter else _full(source, name, device, dtype)
        except UnpicklingError as error:
            raise UserError(f"the weights of {name} cannot be loaded: {PICKLED}; save them as safetensors") from error
    model.eval()
    model.requires_grad_(False)
    tokenizer = _tokenizer(source, adapter, name)
    with in_one_line(f"the tokenizer of {name} cannot be used"):
        return model, tokenizer, _bos(tokenizer, source, model.get_input_embeddings().weight.shape[0])


def _full(source: Path | str, name: str, device: str, dtype: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    if card := _beside(source, "config.json"):
        check_sizes(read_json(card), card)
    folder, file = _folder_and_file(source)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **file)
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        how = dict(quantised).get("quant_method") or "quantization_config" if isinstance(quantised, dict) else quantised
        raise UserError(
            f"{name} is quantised ({how}): its weights are no plain matrices; give the checkpoint that it was made "
            "from, or one saved after `model.dequantize()`"
        )
    exact = getattr(torch, dtype) if dtype != "auto" else "auto" if device.startswith("cuda") else torch.float32
    options: dict[str, Any] = {"config": config, "dtype": exact, "attn_implementation": "eager"}
    options |= {"output_loading_info": True, "trust_remote_code": False}
    options |= {"ignore_mismatched_sizes": True}  # `check_report` refuses them by name
    model, report = cast(Any, AutoModelForCausalLM.from_pretrained(folder, **options, **file))
    check_report(model, report, name)
    return model.to(device)


def _folder_and_file(source: Path | str) -> tuple[Path | str, dict[str, str]]:
    """Where Transformers finds a checkpoint: its directory, and which GGUF file there, if it is one."""
    if not isinstance(source, Path) or source.suffix.lower() != ".gguf" or source.is_dir():
        return source, {}
    if find_spec("gguf") is None:
        raise UserError(
            f"{source} is a GGUF file; `pip install gguf` to have it read, or give the model it was made from"
        )
    return source.parent, {"gguf_file": source.name}


def check_sizes(config: Mapping[str, Any], path: Path) -> None:
    """Raise `UserError` where a model would have no layers, heads, words or width, or fewer than none."""
    part = config.get("text_config")  # of models that read more than text
    for name, value in [*config.items(), *(part.items() if isinstance(part, Mapping) else ())]:
        if _SIZE.fullmatch(name) and isinstance(value, (int, float, str)) and (type(value) is not int or value < 1):
            raise UserError(f"{path} says {name} = {value!r:.40}; expected a whole number from 1 up")


def check_report(model: nn.Module, report: dict[str, Any], name: str) -> None:
    """Raise `UserError` unless a checkpoint's tensors are the model's weights (`report`: Transformers' loading info).

    Tied and optional weights may be missing; Transformers leaves them out of its report. A tensor that nothing takes
    is refused where the module that should take it exists, such as a bias that the configuration leaves out, and where
    it is of a block more than the configuration has.
    """
    modules = dict(model.named_modules())
    wrong = {
        "lacks": report["missing_keys"],
        "has in another shape": [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]],
        "holds, where its config.json has no place for them,": [
            key
            for key in report["unexpected_keys"]
            if _takes_weights(modules.get(key.rpartition(".")[0])) or _of_a_further_layer(key, modules)
        ],
    }
    for what, keys in wrong.items():
        if keys:
            first, more = ", ".join(sorted(keys)[:3]), f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            others = sorted(report["unexpected_keys"])[:1] if what == "lacks" else ()
            meant = "".join(f"; it holds {key}, which the model does not know" for key in others)
            raise UserError(
                f"the checkpoint {name} {what} {first}{more}{meant}: save it again with save_pretrained, under the "
                "names of its architecture"
            )


def _of_a_further_layer(key: str, modules: dict[str, nn.Module]) -> bool:
    """Whether a tensor belongs to a block beyond those that the configuration has: `layers.2.…` of a model of two."""
    parts = key.split(".")
    return any(
        part.isdigit() and ".".join([*parts[:place], "0"]) in modules and ".".join(parts[: place + 1]) not in modules
        for place, part in enumerate(parts)
    )


def _takes_weights(module: nn.Module | None) -> bool:
    return module is not None and any(True for _ in module.parameters(recurse=False))


def _merged(source: Path | str, adapter: Path, name: str, device: str, dtype: str) -> Any:
    """The model that a LoRA adapter was trained on, with the adapter's products added to its weights."""
    base = read_json(adapter).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{name} holds a LoRA adapter that does not say of which model (base_model_name_or_path)")
    try:
        from peft import PeftModel  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"{name} holds a LoRA adapter of {base}; `pip install peft` to have it merged, or give a merged model"
        ) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        model = PeftModel.from_pretrained(_full(model_source(base), base, device, dtype), str(source))
    return model.merge_and_unload()


def _tokenizer(source: Path | str, adapter: Path | None, name: str) -> Any:
    from transformers import AutoTokenizer

    if adapter and _beside(source, "tokenizer_config.json") is None:
        source = model_source(read_json(adapter)["base_model_name_or_path"])
    way_out = "put its tokenizer.json, or its vocabulary, beside the weights"
    with in_one_line(f"the tokenizer of {name} could not be loaded; {way_out}"):
        folder, file = _folder_and_file(source)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **file)
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # made of nothing, from its class alone
            raise UserError(f"{name} has no tokenizer; {way_out}")
    return tokenizer


def _bos(tokenizer: Any, source: Path | str, n_vocab: int) -> int | None:
    """With what the model's texts begin by its own convention; None where it has none.

    It is the one token that the tokenizer itself puts before a text, or else the one that it declares as BOS, which
    may be its end token (GPT-2). One that no file holds, but only the class's defaults, has no row that was trained.
    """
    bare, whole = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    before = next((whole[:n] for n in range(len(whole)) if whole[n : n + len(bare)] == bare), [])
    bos = before[0] if len(before) == 1 else tokenizer.bos_token_id
    if bos is None or bos >= n_vocab:
        return None
    if bos >= tokenizer.vocab_size and (path := _beside(source, "tokenizer.json")):
        with reading(path):
            return bos if bos in {token["id"] for token in read_json(path).get("added_tokens", ())} else None
    return bos


def _beside(source: Path | str, file: str) -> Path | None:
    """A file of the checkpoint, fetched if need be; None where there is none."""
    if isinstance(source, Path):
        return source / file if (source / file).is_file() else None
    from transformers.utils import cached_file

    path = cached_file(source, file, _raise_exceptions_for_missing_entries=False)
    return Path(path) if path else None
