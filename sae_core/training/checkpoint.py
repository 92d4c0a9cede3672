"""Training states on disk: a folder `checkpoint` of safetensors and JSON, from which training goes on exactly.

Where latents are spread over ranks, each writes those that it has into a file of its own, and any number of ranks goes
on from them. (Not torch.distributed.checkpoint: its index is a pickle, and none is loaded here.)
"""

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_core import checks
from sae_core.codec import finite, from_plain
from sae_core.data.text import Text
from sae_core.errors import UserError
from sae_core.files import read_json, read_tensors, reading, write_json, write_tensors
from sae_core.model.language_model import LanguageModel
from sae_core.model.precision import Kept
from sae_core.partial import sweep
from sae_core.sharding.control import everywhere
from sae_core.sharding.files import latents_of
from sae_core.sharding.ranks import ALONE, Ranks
from sae_core.sites import Site
from sae_core.training.config import TrainConfig
from sae_core.training.state import Member, SiteState, TrainState, check_finite, site_state

CHECKPOINT, STATE = "checkpoint", "state.json"
"""The names of the folder, and of its card, which is written last."""
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_COUNTERS = ("silent", "dead", "threshold", "lost")


@dataclass(frozen=True)
class CheckpointCard:
    """What `state.json` holds. Raises `UserError` for values that no run has."""

    file: str
    """The tensors, beside it."""
    step: int
    block: int
    position: int
    scales: dict[Site, float]
    model: str
    fingerprint: str
    text: Text
    dtype: str
    """Of the language model."""
    contexts: str
    """Digest of those that are trained on."""
    digest: str
    """Of the tensors."""
    bfloat16: list[bool]
    training: list[dict[str, Any]]
    outlier_norms: dict[Site, float | None] = field(default_factory=dict)
    """None: no token is an outlier."""
    rows: Kept = "float32"
    """The precision in which activations come: that of the cache, where there is one."""
    further: dict[str, str] = field(default_factory=dict)
    """The files of the other shards' latents, in their order, and the digests of their tensors."""

    def __post_init__(self):
        for name in ("step", "block", "position"):
            checks.whole(name, getattr(self, name))
        for site, scale in self.scales.items():
            checks.positive(f"the scale at {site}", scale, most=math.inf)
        if not self.scales or not self.training or len(self.training) != len(self.bfloat16):
            raise UserError("it describes no run: give sites, and a precision for every configuration")
        if any(self.step > config.steps for config in self.configs):
            raise UserError(f"step {self.step} is beyond the end of its run, which has {self.configs[0].steps}")

    @property
    def configs(self) -> list[TrainConfig]:
        """What each member trains."""
        return [TrainConfig.from_json(member) for member in self.training]


def save_checkpoint(
    state: TrainState, text: Text, model: LanguageModel, out: Path, *, contexts: str, rows: Kept = "float32"
) -> None:
    """Write everything that `load_checkpoint` needs to go on exactly.

    `contexts` is the `digest` of those trained on, `rows` the precision in which their activations come.

    The tensors' file carries the step in its name and the card names the file, so that a card never
    goes with the tensors of another step. Raises `UserError` for a state with a loss that was not a number.
    """
    check_finite(state)
    folder, ranks = out / CHECKPOINT, state.ranks
    names = [_file_name(state.step, shard, ranks.shards) for shard in range(ranks.shards)]
    if ranks.rank == 0:
        sweep(folder)
    for _, at_site in _places(state):
        at_site.silent = ranks.least_of_replicas(at_site.silent)
    first_replica = ranks.rank < ranks.shards
    digests = everywhere(ranks, write_tensors(folder / names[ranks.shard], _stored(state)) if first_replica else "")
    if ranks.rank:
        return
    card = {
        "digest": digests[0],
        "file": names[0],
        "further": dict(zip(names[1:], digests[1:], strict=False)),
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
        "rows": rows,
        "bfloat16": [member.bfloat16 for member in state.members],
        "training": [member.config.to_json() for member in state.members],
    }
    write_json(folder / STATE, card)
    for old in folder.glob("state-*.safetensors"):
        if old.name not in names:
            old.unlink()


def _file_name(step: int, shard: int, shards: int) -> str:
    return f"state-{step}.safetensors" if shards == 1 else f"state-{step}-{shard:05}-of-{shards:05}.safetensors"


def has_checkpoint(out: Path) -> bool:
    """Whether training can go on from what is in `out`; a folder that was begun and not finished is no checkpoint."""
    return (out / CHECKPOINT / STATE).is_file()


def remove_checkpoint(out: Path) -> None:
    """Remove the checkpoint in `out`; one that is removed in part only is none."""
    (out / CHECKPOINT / STATE).unlink(missing_ok=True)
    shutil.rmtree(out / CHECKPOINT, ignore_errors=True)


def read_checkpoint(out: Path) -> CheckpointCard:
    """The card of the checkpoint in `out`; raises `UserError` where there is none, or a damaged one."""
    path = out / CHECKPOINT / STATE
    if not has_checkpoint(out):
        raise UserError(f"{out} holds no checkpoint to resume from; start without --resume")
    value = read_json(path)
    if "digest" not in value:
        raise UserError(f"{path} does not say what it depends on, as those of earlier versions; start anew elsewhere")
    with reading(path):
        return from_plain(CheckpointCard, value)


def load_checkpoint(out: Path, *, device: torch.device, ranks: Ranks = ALONE) -> TrainState:
    """The training state saved in `out`, which multiplies in the precision that it began with, whatever the device.

    Nothing is used before everything is checked: names, shapes, types and ranges (of moments that are too small the
    fused optimiser reads past the end). Raises `UserError` for a checkpoint that is damaged.
    """
    card = read_checkpoint(out)
    paths = [out / CHECKPOINT / Path(name).name for name in (card.file, *card.further)]
    parts = dict(zip(paths, (card.digest, *card.further.values()), strict=True))
    with reading(paths[0]):
        if len(parts) == ranks.shards == 1:
            tensors, n_dead = read_tensors(paths[0], card.digest), {}
        else:
            tensors, n_dead = latents_of(parts, [config.expansion for config in card.configs], ranks)
        state = _untrained(card, tensors, device, ranks)
        _check(tensors, state)
        _fill(state, tensors, n_dead)
    return state


def _places(state: TrainState) -> Iterator[tuple[str, SiteState]]:
    """What is trained, with the beginning of the names of its tensors."""
    for number, member in enumerate(state.members):
        for site, at_site in member.sites.items():
            yield f"{number}/{site}", at_site


def _stored(state: TrainState) -> dict[str, Tensor]:
    """What this rank writes: dead latents by their places in the whole dictionary."""
    tensors = _tensors_of(state)
    for place, at_site in _places(state):
        tensors[f"{place}/state/dead"] = at_site.dead + state.ranks.latents(at_site.n_latents).start
    return tensors


def _tensors_of(state: TrainState) -> dict[str, Tensor]:
    """Everything that changes with a step, but for the cursor."""
    tensors: dict[str, Tensor] = {}
    for place, at_site in _places(state):
        tensors |= {f"{place}/{name}": parameter for name, parameter in at_site.sae.named_parameters()}
        tensors |= {f"{place}/state/{name}": getattr(at_site, name) for name in _COUNTERS}
        for name, weight in at_site.weights.items():
            moments = at_site.optimizer.state.get(weight, {})
            tensors |= {f"{place}/{moment}/{name}": tensor for moment, tensor in moments.items()}
    return tensors


def _untrained(card: CheckpointCard, tensors: Mapping[str, Tensor], device: torch.device, ranks: Ranks) -> TrainState:
    """The state that the card describes before its first step, of the sizes that its decoders have."""
    members = []
    for number, (config, bfloat16) in enumerate(zip(card.configs, card.bfloat16, strict=True)):
        sites = {}
        for site, scale in card.scales.items():
            W_dec = tensors[f"{number}/{site}/W_dec"]
            (n_latents, d_in), exact = W_dec.shape, torch.float64 if W_dec.dtype is torch.float64 else torch.float32
            if n_latents != len(ranks.latents(config.expansion * d_in)):
                raise UserError(f"{number}/{site}/W_dec has {n_latents} rows, not {config.expansion} times {d_in}")
            sae = config.recipe.new(d_in, n_latents, generator=torch.Generator()).to(device, exact)
            whole = config.expansion * d_in
            sites[site] = site_state(sae, scale, card.outlier_norms.get(site) or math.inf, ranks, whole)
        members.append(Member(config, sites, bfloat16))
    return TrainState(members, card.step, card.block, card.position)


def _check(tensors: Mapping[str, Tensor], untrained: TrainState) -> None:
    """Raise `UserError` unless these are the tensors of such a state, all of them and no others."""
    expected = _tensors_of(untrained)
    for place, at_site in _places(untrained):
        for name, weight in at_site.weights.items():
            moments = [f"{place}/{moment}/{name}" for moment in _MOMENTS]
            if any(key in tensors for key in moments):  # none before the first step
                expected |= dict(zip(moments, (torch.zeros(()), weight, weight), strict=True))
    if wrong := sorted(expected.keys() ^ tensors.keys()):
        raise UserError(f"{wrong[0]} is {'missing' if wrong[0] in expected else 'no part of such a run'}")
    for name, x in tensors.items():
        like = expected[name]
        shape = x.shape if name.endswith("/dead") and x.ndim == 1 else like.shape
        if x.shape != shape or x.dtype != like.dtype:
            raise UserError(f"{name} is {x.dtype} {[*x.shape]}; expected {like.dtype} {[*like.shape]}")
        if not x.isfinite().all():
            raise UserError(f"{name} holds NaN or infinity")
    for place, at_site in _places(untrained):
        dead = tensors[f"{place}/state/dead"]
        if len(dead) and not 0 <= int(dead.min()) <= int(dead.max()) < at_site.sae.n_latents:
            raise UserError(f"{place}/state/dead names latents that there are not")


def _fill(state: TrainState, tensors: Mapping[str, Tensor], n_dead: Mapping[str, int]) -> None:
    """Take over checked tensors, and how many latents are dead on all ranks."""
    for place, at_site in _places(state):
        device = at_site.sae.W_dec.device
        for name in _COUNTERS:
            setattr(at_site, name, tensors[f"{place}/state/{name}"].to(device))
        at_site.dead_elsewhere = n_dead.get(f"{place}/state/dead", len(at_site.dead)) - len(at_site.dead)
        for name, parameter in at_site.sae.named_parameters():
            parameter.data.copy_(tensors[f"{place}/{name}"])
        for name, weight in at_site.weights.items():
            keys = {moment: f"{place}/{moment}/{name}" for moment in _MOMENTS}
            if keys["step"] in tensors:
                at_site.optimizer.state[weight] = {m: tensors[key].to(device) for m, key in keys.items()}
