"""Dictionaries and checkpoints on disk: safetensors and JSON, each file whole or not there.

A set is a folder with `set.json` and one folder per site in the layout that SAELens reads (`cfg.json`,
`sae_weights.safetensors`); a checkpoint is a folder `checkpoint` beside them. `set.json` is written
last: a folder that has it is complete.
"""

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_core.errors import UserError
from sae_core.models import LanguageModel, hook_name
from sae_core.saes import TopKSAE
from sae_core.sites import Site
from sae_core.text import Text
from sae_core.training import TrainConfig, TrainState, site_state

SET, CHECKPOINT, QUALITY = "set.json", "checkpoint", "quality.json"
_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass(frozen=True, eq=False)
class DictionarySet:
    """One dictionary per site, with the model and the text they belong to."""

    model: str
    """Where the model is: `storybook`, a directory, or a hub name."""
    fingerprint: str
    text: Text
    training: TrainConfig
    dictionaries: dict[Site, TopKSAE]

    def check(self, model: LanguageModel) -> None:
        """Raise `UserError` unless `model` is the one that the dictionaries were trained on."""
        for site, dictionary in self.dictionaries.items():
            model.check(site)
            width = dictionary.directions.shape[-1]
            if width != model.d_in(site):
                raise UserError(
                    f"the dictionary for {site} reads activations of width {width}; "
                    f"those of {model.name} have width {model.d_in(site)}"
                )
        if model.fingerprint() != self.fingerprint:
            raise UserError(f"these dictionaries were trained on another model ({self.model}) than {model.name}")


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner may read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except SafetensorError as error:  # a full disk, for one: it is no OSError
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} could not be written: {error}") from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing; the folder is not a complete dictionary set")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises `UserError` where it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} is missing; the folder is not complete") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return value


# ---- sets ------------------------------------------------------------------------------------------


def save_set(dictionaries: DictionarySet, out: Path) -> None:
    """Write a set into the folder `out`; `load_set` is its inverse."""
    for stale in (SET, QUALITY):
        (out / stale).unlink(missing_ok=True)
    for site, sae in dictionaries.dictionaries.items():
        _write_tensors(out / str(site) / "sae_weights.safetensors", {name: getattr(sae, name) for name in _WEIGHTS})
        write_json(out / str(site) / "cfg.json", _sae_lens_card(dictionaries, site, sae))
    card = {
        "model": dictionaries.model,
        "fingerprint": dictionaries.fingerprint,
        "text": asdict(dictionaries.text),
        "training": asdict(dictionaries.training),
        "sites": [str(site) for site in sorted(dictionaries.dictionaries)],
    }
    write_json(out / SET, card)


def load_set(folder: Path, *, device: torch.device | str = "cpu") -> DictionarySet:
    """The set in `folder`; raises `UserError` where there is none or it is damaged."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give a folder that `subrank train` wrote")
    if not (folder / SET).is_file():
        hint = "; its training did not finish: go on with --resume" if (folder / CHECKPOINT).is_dir() else ""
        raise UserError(f"{folder} holds no dictionaries (no {SET}){hint}")
    card = read_json(folder / SET)
    try:
        sites = [Site.parse(str(text)) for text in card["sites"]]
        text, training = Text(**card["text"]), TrainConfig(**card["training"])
        saes = {site: _load_sae(folder / str(site)).to(device) for site in sites}
        return DictionarySet(card["model"], card["fingerprint"], text, training, saes)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / SET} is damaged: {error}") from error


def _load_sae(folder: Path) -> TopKSAE:
    tensors = _read_tensors(folder / "sae_weights.safetensors")
    card = read_json(folder / "cfg.json")
    missing = [name for name in _WEIGHTS if name not in tensors]
    if missing or card.get("architecture") != "topk":
        raise UserError(f"{folder} holds no TopK dictionary (missing: {', '.join(missing) or 'architecture topk'})")
    try:
        n_latents, d_in = tensors["W_dec"].shape
        sae = TopKSAE(d_in, n_latents, int(card["k"]), generator=torch.Generator())
        sae.load_state_dict({name: tensors[name] for name in _WEIGHTS})
    except RuntimeError as error:
        raise UserError(f"{folder} is damaged: the shapes of its tensors do not fit each other") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is damaged: {error}") from error
    return sae.requires_grad_(False)


def _sae_lens_card(dictionaries: DictionarySet, site: Site, sae: TopKSAE) -> dict[str, Any]:
    n_latents, d_in = sae.W_dec.shape
    return {
        "architecture": "topk",
        "d_in": d_in,
        "d_sae": n_latents,
        "k": sae.k,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": dictionaries.model,
            "hook_name": hook_name(site),
            "prepend_bos": dictionaries.text.prepend_bos,
            "context_size": dictionaries.text.n_ctx,
            "dataset_path": dictionaries.text.source,
        },
    }


# ---- checkpoints -----------------------------------------------------------------------------------


def save_checkpoint(state: TrainState, text: Text, model: LanguageModel, config: TrainConfig, out: Path) -> None:
    """Write everything that `load_checkpoint` needs to go on exactly.

    The tensors' file carries the step in its name and the card names the file, so that a card never
    goes with the tensors of another step.
    """
    tensors: dict[str, Tensor] = {}
    for site, own in state.sites.items():
        names = {parameter: name for name, parameter in own.sae.named_parameters()}
        tensors |= {f"{site}/{name}": parameter for parameter, name in names.items()}
        tensors[f"{site}/silent"] = own.silent
        for parameter, moments in own.optimizer.state.items():
            tensors |= {f"{site}/{name}/{names[parameter]}": tensor for name, tensor in moments.items()}
    folder, file = out / CHECKPOINT, f"state-{state.step}.safetensors"
    _write_tensors(folder / file, tensors)
    card = {
        "file": file,
        "step": state.step,
        "block": state.block,
        "position": state.position,
        "scales": {str(site): own.scale for site, own in state.sites.items()},
        "model": model.name,
        "fingerprint": model.fingerprint(),
        "text": asdict(text),
        "training": asdict(config),
    }
    write_json(folder / "state.json", card)
    for old in folder.glob("state-*.safetensors"):
        if old.name != file:
            old.unlink()


def read_checkpoint(out: Path) -> dict[str, Any]:
    """The card of the checkpoint in `out`; raises `UserError` where there is none, or a damaged one."""
    path = out / CHECKPOINT / "state.json"
    if not path.is_file():
        raise UserError(f"{out} holds no checkpoint to resume from; start without --resume")
    card = read_json(path)
    wanted = ("file", "step", "block", "position", "scales", "model", "fingerprint", "text", "training")
    missing = [name for name in wanted if name not in card]
    if missing:
        raise UserError(f"{path} is damaged: it does not say {', '.join(missing)}")
    return card


def load_checkpoint(out: Path, *, device: torch.device) -> TrainState:
    """The training state saved in `out`."""
    card = read_checkpoint(out)
    try:
        return _training_state(card, _read_tensors(out / CHECKPOINT / card["file"]), device)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{out / CHECKPOINT} is damaged: {str(error).splitlines()[0]}") from error


def _training_state(card: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> TrainState:
    config, sites = TrainConfig(**card["training"]), {}
    for name, scale in card["scales"].items():
        n_latents, d_in = tensors[f"{name}/W_dec"].shape
        sae = TopKSAE(d_in, n_latents, config.k, generator=torch.Generator()).to(device)
        own = site_state(sae, scale)
        own.silent = tensors[f"{name}/silent"].to(device)
        for parameter_name, parameter in sae.named_parameters():
            parameter.data.copy_(tensors[f"{name}/{parameter_name}"])
            if f"{name}/step/{parameter_name}" in tensors:
                own.optimizer.state[parameter] = {
                    "step": tensors[f"{name}/step/{parameter_name}"].to(device),
                    # the fused optimiser reads moments in the memory order of the parameter
                    "exp_avg": torch.zeros_like(parameter).copy_(tensors[f"{name}/exp_avg/{parameter_name}"]),
                    "exp_avg_sq": torch.zeros_like(parameter).copy_(tensors[f"{name}/exp_avg_sq/{parameter_name}"]),
                }
        sites[Site.parse(name)] = own
    return TrainState(sites, card["step"], card["block"], card["position"])
