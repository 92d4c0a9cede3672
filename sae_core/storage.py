"""Dictionaries of one model, and on disk: safetensors and JSON, each file whole or not there.

A set is a folder with `set.json` and one folder per site in the layout that SAELens reads (`cfg.json`,
`sae_weights.safetensors`); a sweep is a folder of sets. `set.json` is written last: a folder that has it
is complete.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sae_core.codec import finite
from sae_core.data.text import Text
from sae_core.dictionaries.normalised import Autoencoder
from sae_core.errors import UserError, no_such
from sae_core.files import read_json, write_json, write_tensors
from sae_core.formats.hook_names import hook_name
from sae_core.formats.readers import load_foreign
from sae_core.formats.sae_lens import to_sae_lens
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site
from sae_core.training.checkpoint import CHECKPOINT
from sae_core.training.config import TrainConfig

SET, QUALITY = "set.json", "quality.json"


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
        if model.fingerprint() != self.fingerprint:
            raise UserError(f"these dictionaries were trained on another model ({self.model}) than {model.name}")

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

    def save(self, folder: Path) -> None:
        """Write the set into a folder; `load_set` is the inverse."""
        folder = Path(folder)
        for stale in (SET, QUALITY):  # what was said of the files that are about to change
            (folder / stale).unlink(missing_ok=True)
        for site, dictionary in self.dictionaries.items():
            tensors, card = to_sae_lens(dictionary, self._metadata(site))
            write_tensors(folder / str(site) / "sae_weights.safetensors", tensors)
            write_json(folder / str(site) / "cfg.json", card)
        pairs = sorted(self.dictionaries.items())
        card = {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "text": asdict(self.text),
            "training": self.training and self.training.to_json(),
            "stream_seed": self.stream_seed,
            "origin": self.origin,
            "sites": [str(site) for site in self.sites],
            "outlier_norms": {str(site): finite(dictionary.outlier_norm) for site, dictionary in pairs},
        }
        write_json(folder / SET, card)

    def _metadata(self, site: Site) -> dict[str, Any]:
        """What a SAELens card says of where a dictionary belongs."""
        return {
            "model_name": _public(self.model),
            "hook_name": hook_name(site),
            "prepend_bos": bool(self.text.prepend_bos),
            "context_size": self.text.n_ctx,
            "dataset_path": _public(self.text.source),
        }


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
    members = sets_in(folder)
    if members != [folder]:
        raise UserError(f"{folder} holds a sweep; give one of its sets: {', '.join(path.name for path in members)}")
    card = read_json(folder / SET)
    try:
        sites = [Site.parse(str(text)) for text in card["sites"]]
        training = card["training"] and TrainConfig.from_json(card["training"])
        saes = {site: load_foreign(folder / str(site)).dictionary.to(device) for site in sites}
        for name, limit in card.get("outlier_norms", {}).items():
            saes[Site.parse(name)].outlier_norm = math.inf if limit is None else float(limit)
        text, origin, order = Text(**card["text"]), card.get("origin", {}), card.get("stream_seed")
        return DictionarySet(card["model"], card["fingerprint"], text, saes, training, origin, order)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / SET} is damaged: {error}") from error


def _public(place: str) -> str:
    """A name as it is, of a path its last part: a folder of dictionaries is given away, the machine's paths are not."""
    return Path(place).name if Path(place).is_absolute() else place
