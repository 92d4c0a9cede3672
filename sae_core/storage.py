"""Dictionaries of one model, and on disk: safetensors and JSON, each file whole or not there.

A set is a folder with `set.json` and one folder per site in the layout that SAELens reads (`cfg.json`,
`sae_weights.safetensors`); a sweep is a folder of sets. `set.json` is written last: a folder that has it
is complete.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sae_core import checks
from sae_core.codec import finite, from_plain, to_plain
from sae_core.data.text import Text
from sae_core.dictionaries.normalised import Autoencoder
from sae_core.dictionaries.opened import Opened
from sae_core.digest import digest
from sae_core.errors import UserError, no_such
from sae_core.files import read_json, reading, user_path, write_json
from sae_core.folders import replacing
from sae_core.formats.blocks import CONFIG, digests_in, write_dictionary
from sae_core.formats.hook_names import hook_name
from sae_core.formats.readers import load_foreign
from sae_core.formats.sae_lens import to_sae_lens
from sae_core.model.fingerprint import parts_other_than
from sae_core.model.language_model import LanguageModel
from sae_core.room import memory_of
from sae_core.sites import FeatureId, Site
from sae_core.training.checkpoint import has_checkpoint
from sae_core.training.config import TrainConfig

SET, QUALITY = "set.json", "quality.json"


@dataclass(frozen=True)
class SetCard:
    """What `set.json` holds; the fields of `DictionarySet` mean the same."""

    model: str
    fingerprint: str
    text: Text
    sites: list[Site]
    training: dict[str, Any] | None
    stream_seed: int | None = None
    origin: dict[str, str] = field(default_factory=dict)
    outlier_norms: dict[Site, float | None] = field(default_factory=dict)
    """None: no token is an outlier."""
    digests: dict[Site, str] = field(default_factory=dict)
    """Of each dictionary's files; sets from before there were digests have none."""

    def __post_init__(self):
        if len(set(self.sites)) < len(self.sites):
            raise UserError("it names a site twice")
        for site, limit in self.outlier_norms.items():
            if site not in self.sites:
                raise no_such("dictionary for", site, self.sites)
            if limit is not None:
                checks.positive(f"the outlier norm at {site}", limit, most=math.inf)


@dataclass(frozen=True, eq=False)
class DictionarySet:
    """One dictionary per site, with the model and the text they belong to."""

    model: str
    """Where the model is: `storybook`, a directory, or a hub name."""
    fingerprint: str
    text: Text
    dictionaries: Mapping[Site, Autoencoder]
    training: TrainConfig | None = None
    """How they were trained; None for imported ones."""
    origin: dict[str, str] = field(default_factory=dict)
    """Per site, where an imported dictionary came from."""
    stream_seed: int | None = None
    """Seed of the order in which the text was read. All members of a sweep share one, that of the first, so that
    a member of another seed is not what training it alone gives; None where it is not known."""

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
        if other := parts_other_than(self.fingerprint, model):
            raise UserError(
                f"these dictionaries were trained on another model ({self.model}) than {model.name}: its "
                f"{' and '.join(other)} differ; give the one that they were trained on"
            )

    @property
    def sites(self) -> list[Site]:
        """The sites that have a dictionary, from the first layer to the last."""
        return sorted(self.dictionaries)

    def at(self, site: Site) -> Autoencoder:
        """The dictionary of a site; raises `UserError`, with the nearest right names, where there is none."""
        if site not in self.dictionaries:
            raise no_such("dictionary for", site, self.sites)
        return self.dictionaries[site]

    def check_feature(self, feature: FeatureId) -> FeatureId:
        """`feature` itself; raises `UserError` where its site has no dictionary, or the dictionary fewer latents."""
        n_latents = self.at(feature.site).n_latents
        if not 0 <= feature.index < n_latents:
            raise UserError(
                f"no feature {feature}: the dictionary for {feature.site} has {n_latents}, numbered from 0 to "
                f"{n_latents - 1}"
            )
        return feature

    def save(self, folder: str | Path) -> None:
        """Put the set in the place of one that was there before; `load_set` is the inverse."""
        with replacing(user_path(folder), QUALITY, SET) as new:
            self.write(new)

    def write(self, folder: Path) -> None:
        """Write the files of the set into a new folder."""
        for site, dictionary in self.dictionaries.items():
            tensors, card = to_sae_lens(dictionary, self._metadata(site))
            write_dictionary(folder / str(site), tensors, card)
        card = SetCard(
            self.model,
            self.fingerprint,
            self.text,
            self.sites,
            self.training and self.training.to_json(),
            self.stream_seed,
            self.origin,
            {site: finite(self.dictionaries[site].outlier_norm) for site in self.sites},
            {site: _stored_digest(folder / str(site)) for site in self.sites},
        )
        write_json(folder / SET, to_plain(card))

    def _metadata(self, site: Site) -> dict[str, Any]:
        """What a SAELens card says of where a dictionary belongs."""
        return {
            "model_name": public_name(self.model),
            "hook_name": hook_name(site),
            "prepend_bos": bool(self.text.prepend_bos),
            "context_size": self.text.n_ctx,
            "dataset_path": public_name(self.text.source),
        }


def sets_in(folder: str | Path) -> list[Path]:
    """The folders of the sets in `folder`: itself, or a sweep's; raises `UserError` where there is none."""
    folder = user_path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give a folder that `subrank train` wrote")
    if (folder / SET).is_file():
        return [folder]
    if has_checkpoint(folder):
        raise UserError(f"{folder} holds no dictionaries (no {SET}); its training did not finish: go on with --resume")
    members = sorted(path.parent for path in folder.glob(f"*/{SET}"))
    if not members:
        raise UserError(f"{folder} holds no dictionaries (no {SET})")
    return members


def load_set(folder: str | Path, *, device: torch.device | str = "cpu", room: int | None = None) -> DictionarySet:
    """The set in `folder`; raises `UserError` where there is none or it is damaged.

    Of a set that takes more than `room` bytes, by default half of this machine's memory, dictionaries are opened as
    they are asked for.
    """
    folder = user_path(folder)
    members = sets_in(folder)
    if members != [folder]:
        raise UserError(f"{folder} holds a sweep; give one of its sets: {', '.join(path.name for path in members)}")
    with reading(folder / SET):
        card = from_plain(SetCard, read_json(folder / SET))
        training = TrainConfig.from_json(card.training) if card.training else None
    room = (memory_of(torch.device("cpu")) or 2**63) // 2 if room is None else room
    files = [file for site in card.sites for file in (folder / str(site)).rglob("*.safetensors")]
    if sum(file.stat().st_size for file in files) > room:
        saes = Opened(card.sites, partial(_dictionary, folder, card), room).to(device)
    else:
        saes = {site: _dictionary(folder, card, site).to(device) for site in card.sites}
    return DictionarySet(card.model, card.fingerprint, card.text, saes, training, card.origin, card.stream_seed)


def _dictionary(folder: Path, card: SetCard, site: Site) -> Autoencoder:
    """One dictionary of a set; raises `UserError` where it is damaged, or another than the card names."""
    dictionary = load_foreign(folder / str(site)).dictionary
    if card.digests.get(site) not in (None, _stored_digest(folder / str(site))):
        raise UserError(
            f"{folder / str(site)} holds another dictionary than {folder / SET} names; bring that back, or "
            "`subrank import` this one"
        )
    if site in card.outlier_norms:
        limit = card.outlier_norms[site]
        dictionary.outlier_norm = math.inf if limit is None else limit
    return dictionary


def _stored_digest(folder: Path) -> str:
    """A digest of a dictionary's card, and that of its tensors, which their file carries."""
    return digest(json.dumps(read_json(folder / CONFIG), sort_keys=True), *digests_in(folder))


def public_name(place: str) -> str:
    """A name as it is, of a path its last part: a folder of dictionaries is given away, the machine's paths are not."""
    return Path(place).name if Path(place).is_absolute() else place
