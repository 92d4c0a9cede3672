"""Dictionaries and checkpoints on disk: safetensors and JSON, each file whole or not there.

A set is a folder with `set.json` and one folder per site in the layout that SAELens reads (`cfg.json`,
`sae_weights.safetensors`); a sweep is a folder of sets; a checkpoint is a folder `checkpoint` beside
them. `set.json` is written last: a folder that has it is complete.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_core.data.text import Text
from sae_core.dictionaries.kinds import parts
from sae_core.dictionaries.normalised import Normed
from sae_core.dictionaries.saes import SAE
from sae_core.errors import UserError
from sae_core.files import read_json, read_tensors, write_json, write_tensors
from sae_core.formats.hook_names import hook_name
from sae_core.formats.readers import load_foreign
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site
from sae_core.training.config import TrainConfig
from sae_core.training.state import Member, TrainState, check_finite, site_state

SET, CHECKPOINT, QUALITY = "set.json", "checkpoint", "quality.json"


@dataclass(frozen=True, eq=False)
class DictionarySet:
    """One dictionary per site, with the model and the text they belong to."""

    model: str
    """Where the model is: `storybook`, a directory, or a hub name."""
    fingerprint: str
    text: Text
    dictionaries: dict[Site, SAE | Normed]
    training: TrainConfig | None = None
    """How they were trained; None for imported ones."""
    origin: dict[str, str] = field(default_factory=dict)
    """Per site, where an imported dictionary came from."""
    stream_seed: int | None = None
    """Seed of the order in which the text was read. All members of a sweep share one, that of the first, so that
    a member of another seed is not what training it alone gives; None where nobody knows."""

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


# ---- sets ------------------------------------------------------------------------------------------


def save_set(dictionaries: DictionarySet, out: Path) -> None:
    """Write a set into the folder `out`; `load_set` is its inverse."""
    for stale in (SET, QUALITY):
        (out / stale).unlink(missing_ok=True)
    for site, sae in dictionaries.dictionaries.items():
        tensors, card = _sae_lens(dictionaries, site, sae)
        write_tensors(out / str(site) / "sae_weights.safetensors", tensors)
        write_json(out / str(site) / "cfg.json", card)
    card = {
        "model": dictionaries.model,
        "fingerprint": dictionaries.fingerprint,
        "text": asdict(dictionaries.text),
        "training": dictionaries.training and dictionaries.training.to_json(),
        "stream_seed": dictionaries.stream_seed,
        "origin": dictionaries.origin,
        "sites": [str(site) for site in sorted(dictionaries.dictionaries)],
    }
    write_json(out / SET, card)


def sets_in(folder: Path) -> list[Path]:
    """The folders of the sets in `folder`: itself, or a sweep's; raises `UserError` where there is none."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give a folder that `subrank train` wrote")
    if (folder / SET).is_file():
        return [folder]
    if (folder / CHECKPOINT).is_dir():
        raise UserError(f"{folder} holds no dictionaries (no {SET}); its training did not finish: go on with --resume")
    members = sorted(path.parent for path in folder.glob(f"*/{SET}"))
    if not members:
        raise UserError(f"{folder} holds no dictionaries (no {SET})")
    return members


def load_set(folder: Path, *, device: torch.device | str = "cpu") -> DictionarySet:
    """The set in `folder`; raises `UserError` where there is none or it is damaged."""
    found = sets_in(folder)
    if found != [folder]:
        raise UserError(f"{folder} holds a sweep; give one of its sets: {', '.join(path.name for path in found)}")
    card = read_json(folder / SET)
    try:
        sites = [Site.parse(str(text)) for text in card["sites"]]
        training = card["training"] and TrainConfig.from_json(card["training"])
        saes = {site: load_foreign(folder / str(site)).dictionary.to(device) for site in sites}
        text, origin, order = Text(**card["text"]), card.get("origin", {}), card.get("stream_seed")
        return DictionarySet(card["model"], card["fingerprint"], text, saes, training, origin, order)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / SET} is damaged: {error}") from error


def _sae_lens(dictionaries: DictionarySet, site: Site, dictionary: SAE | Normed) -> tuple[dict, dict[str, Any]]:
    """Tensors and card in the layout of SAELens 6."""
    whole = parts(dictionary)
    sae, kind, normalisation = whole.sae, whole.kind, whole.normalisation
    tensors = dict(sae.state_dict())
    if (gain := getattr(sae, "gain", None)) is not None:  # which SAELens keeps in the lengths of the directions
        tensors["W_dec"] = sae.W_dec * gain[:, None]
    loaded = normalisation.loaded if normalisation else {}
    card = {
        "architecture": kind.sae_lens,
        "d_in": sae.d_in,
        "d_sae": sae.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": normalisation.sae_lens if normalisation else "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": _public(dictionaries.model),
            "hook_name": hook_name(site),
            "prepend_bos": dictionaries.text.prepend_bos,
            "context_size": dictionaries.text.n_ctx,
            "dataset_path": _public(dictionaries.text.source),
            **({"model_from_pretrained_kwargs": dict(loaded)} if loaded else {}),
        },
    }
    card |= {name: getattr(sae, name) for name in kind.settings}
    return tensors, card | kind.card


def _public(place: str) -> str:
    """A name as it is, of a path its last part: a folder of dictionaries is given away, the machine's paths are not."""
    return Path(place).name if Path(place).is_absolute() else place


# ---- checkpoints -----------------------------------------------------------------------------------


def save_checkpoint(state: TrainState, text: Text, model: LanguageModel, out: Path, *, contexts: str) -> None:
    """Write everything that `load_checkpoint` needs to go on exactly; `contexts` is the `digest` of those trained on.

    The tensors' file carries the step in its name and the card names the file, so that a card never
    goes with the tensors of another step. Raises `UserError` for a state with a loss that was not a number.
    """
    check_finite(state)
    tensors: dict[str, Tensor] = {}
    for number, member in enumerate(state.members):
        for site, own in member.sites.items():
            place = f"{number}/{site}"
            tensors |= {f"{place}/{name}": parameter for name, parameter in own.sae.named_parameters()}
            tensors |= {f"{place}/state/{name}": getattr(own, name) for name in _COUNTERS}
            for name, weight in own.weights.items():
                moments = own.optimizer.state.get(weight, {})
                tensors |= {f"{place}/{moment}/{name}": tensor for moment, tensor in moments.items()}
    folder, file = out / CHECKPOINT, f"state-{state.step}.safetensors"
    write_tensors(folder / file, tensors)
    card = {
        "file": file,
        "step": state.step,
        "block": state.block,
        "position": state.position,
        "scales": {str(site): own.scale for site, own in state.members[0].sites.items()},
        "model": model.name,
        "fingerprint": model.fingerprint(),
        "text": asdict(text),
        "contexts": contexts,
        "bfloat16": [member.bfloat16 for member in state.members],
        "training": [member.config.to_json() for member in state.members],
    }
    write_json(folder / "state.json", card)
    for old in folder.glob("state-*.safetensors"):
        if old.name != file:
            old.unlink()


_CARD = ("file", "step", "block", "position", "scales", "model", "fingerprint")
_CARD += ("text", "contexts", "bfloat16", "training")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_COUNTERS = ("silent", "dead", "threshold", "lost")


def read_checkpoint(out: Path) -> dict[str, Any]:
    """The card of the checkpoint in `out`; raises `UserError` where there is none, or a damaged one."""
    path = out / CHECKPOINT / "state.json"
    if not path.is_file():
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
            own = site_state(config.recipe.new(d_in, n_latents, generator=torch.Generator()).to(device), scale)
            for counter in _COUNTERS:
                setattr(own, counter, tensors[f"{place}/state/{counter}"].to(device))
            for parameter_name, parameter in own.sae.named_parameters():
                parameter.data.copy_(tensors[f"{place}/{parameter_name}"])
            for weight_name, weight in own.weights.items():
                moments = {moment: tensors.get(f"{place}/{moment}/{weight_name}") for moment in _MOMENTS}
                if moments["step"] is not None:
                    own.optimizer.state[weight] = {moment: value.to(device) for moment, value in moments.items()}
            sites[Site.parse(name)] = own
        members.append(Member(config, sites, bool(bfloat16)))
    return TrainState(members, card["step"], card["block"], card["position"])
