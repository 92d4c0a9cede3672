"""Training states on disk: a folder `checkpoint` of safetensors and JSON, from which training goes on exactly."""

import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_core.codec import finite
from sae_core.data.text import Text
from sae_core.errors import UserError
from sae_core.files import read_json, read_tensors, write_json, write_tensors
from sae_core.model.language_model import LanguageModel
from sae_core.partial import sweep
from sae_core.sites import Site
from sae_core.training.config import TrainConfig
from sae_core.training.state import Member, TrainState, check_finite, site_state

CHECKPOINT, STATE = "checkpoint", "state.json"
"""The names of the folder, and of its card, which is written last."""
_CARD = ("file", "step", "block", "position", "scales", "model", "fingerprint")
_CARD += ("text", "contexts", "bfloat16", "training")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_COUNTERS = ("silent", "dead", "threshold", "lost")


def save_checkpoint(state: TrainState, text: Text, model: LanguageModel, out: Path, *, contexts: str) -> None:
    """Write everything that `load_checkpoint` needs to go on exactly; `contexts` is the `digest` of those trained on.

    The tensors' file carries the step in its name and the card names the file, so that a card never
    goes with the tensors of another step. Raises `UserError` for a state with a loss that was not a number.
    """
    check_finite(state)
    tensors: dict[str, Tensor] = {}
    for number, member in enumerate(state.members):
        for site, at_site in member.sites.items():
            place = f"{number}/{site}"
            tensors |= {f"{place}/{name}": parameter for name, parameter in at_site.sae.named_parameters()}
            tensors |= {f"{place}/state/{name}": getattr(at_site, name) for name in _COUNTERS}
            for name, weight in at_site.weights.items():
                moments = at_site.optimizer.state.get(weight, {})
                tensors |= {f"{place}/{moment}/{name}": tensor for moment, tensor in moments.items()}
    folder, file = out / CHECKPOINT, f"state-{state.step}.safetensors"
    sweep(folder)
    write_tensors(folder / file, tensors)
    card = {
        "file": file,
        "step": state.step,
        "block": state.block,
        "position": state.position,
        "scales": {str(site): at_site.scale for site, at_site in state.members[0].sites.items()},
        "outlier_norms": {str(site): finite(limit) for site, limit in state.limits.items()},
        "model": model.name,
        "fingerprint": model.fingerprint(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "text": asdict(text),
        "contexts": contexts,
        "bfloat16": [member.bfloat16 for member in state.members],
        "training": [member.config.to_json() for member in state.members],
    }
    write_json(folder / STATE, card)
    for old in folder.glob("state-*.safetensors"):
        if old.name != file:
            old.unlink()


def has_checkpoint(out: Path) -> bool:
    """Whether training can go on from what is in `out`; a folder that was begun and not finished is no checkpoint."""
    return (out / CHECKPOINT / STATE).is_file()


def remove_checkpoint(out: Path) -> None:
    """Remove the checkpoint in `out`; one that is removed in part only is none."""
    (out / CHECKPOINT / STATE).unlink(missing_ok=True)
    shutil.rmtree(out / CHECKPOINT, ignore_errors=True)


def read_checkpoint(out: Path) -> dict[str, Any]:
    """The card of the checkpoint in `out`; raises `UserError` where there is none, or a damaged one."""
    path = out / CHECKPOINT / STATE
    if not has_checkpoint(out):
        raise UserError(f"{out} holds no checkpoint to resume from; start without --resume")
    card = read_json(path)
    missing = [name for name in _CARD if name not in card]
    if missing:
        raise UserError(f"{path} is damaged: it does not say {', '.join(missing)}")
    return card


def load_checkpoint(out: Path, *, device: torch.device) -> TrainState:
    """The training state saved in `out`, which multiplies in the precision that it began with, whatever the device."""
    card = read_checkpoint(out)
    try:
        return _training_state(card, read_tensors(out / CHECKPOINT / card["file"]), device)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{out / CHECKPOINT} is damaged: {str(error).splitlines()[0]}") from error


def _training_state(card: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> TrainState:
    members = []
    configs = map(TrainConfig.from_json, card["training"])
    for number, (config, bfloat16) in enumerate(zip(configs, card["bfloat16"], strict=True)):
        sites = {}
        for name, scale in card["scales"].items():
            place = f"{number}/{name}"
            n_latents, d_in = tensors[f"{place}/W_dec"].shape
            limit = card.get("outlier_norms", {}).get(name) or math.inf
            sae = config.recipe.new(d_in, n_latents, generator=torch.Generator()).to(device)
            at_site = site_state(sae, scale, limit)
            for counter in _COUNTERS:
                setattr(at_site, counter, tensors[f"{place}/state/{counter}"].to(device))
            for parameter_name, parameter in at_site.sae.named_parameters():
                parameter.data.copy_(tensors[f"{place}/{parameter_name}"])
            for weight_name, weight in at_site.weights.items():
                keys = {moment: f"{place}/{moment}/{weight_name}" for moment in _MOMENTS}
                if keys["step"] in tensors:  # none before the first step
                    at_site.optimizer.state[weight] = {m: tensors[key].to(device) for m, key in keys.items()}
            sites[Site.parse(name)] = at_site
        members.append(Member(config, sites, bool(bfloat16)))
    return TrainState(members, card["step"], card["block"], card["position"])
