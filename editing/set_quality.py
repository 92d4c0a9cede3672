"""What the dictionaries of a set are worth on held-out text: the numbers that every result opens with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from jaxtyping import Int
from torch import Tensor

from editing.loss_recovered import SpliceCost, splice_costs
from sae_core.codec import finite, from_plain, to_plain
from sae_core.evaluation.profiles import quality
from sae_core.evaluation.reconstruction import Quality
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site
from sae_core.storage import DictionarySet

N_SPLICED = 64
"""Contexts on which dictionaries are spliced in; reconstruction is measured on all that are given."""


@dataclass(frozen=True)
class SetQuality:
    """How well each dictionary reconstructs its site, and what its reconstruction costs the model's prediction."""

    quality: dict[Site, Quality]
    cost: dict[Site, SpliceCost]

    def lines(self) -> list[str]:
        """A line for each site: FVU, L0, dead latents, and the loss with the reconstruction spliced in.

        And one for each site where outliers matter.
        """
        lines = [
            f"{site}: FVU {quality.fvu:.3f}, L0 {quality.l0:.1f}, dead {quality.dead:.1%}, "
            f"loss recovered {self.cost[site].recovered:.3f}"
            for site, quality in self.quality.items()
        ]
        return lines + [f"{site}: {text}" for site, quality in self.quality.items() if (text := quality.warning())]

    def to_json(self) -> dict[str, dict[str, Any]]:
        """FVU, L0, dead share, outliers and the cross-entropies, per site; `from_json` is the inverse."""
        return {
            str(site): to_plain(quality)
            | {"loss_recovered": finite(self.cost[site].recovered)}
            | {f"loss_{name}": value for name, value in asdict(self.cost[site]).items()}
            for site, quality in self.quality.items()
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Mapping[str, Any]]) -> "SetQuality":
        """The quality that `to_json` wrote; raises `KeyError` or `TypeError` on anything else."""
        quality, cost = {}, {}
        for name, row in value.items():
            site = Site.parse(name)
            quality[site] = from_plain(Quality, {f.name: row[f.name] for f in fields(Quality) if f.name in row})
            cost[site] = from_plain(SpliceCost, {f.name: row[f"loss_{f.name}"] for f in fields(SpliceCost)})
        return cls(quality, cost)


def measure_set(model: LanguageModel, dictionaries: DictionarySet, contexts: Int[Tensor, "contexts pos"]) -> SetQuality:
    """Quality of every dictionary on all `contexts`, and its splice cost on the first `N_SPLICED` of them."""
    by_site = dictionaries.dictionaries
    return SetQuality(quality(model, by_site, contexts), splice_costs(model, by_site, contexts[:N_SPLICED]))
