"""Other examples of a feature than its strongest: drawn anew, or spread over its range of activations."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.features.atlas import Examples, ExampleSource
from sae_core.dictionaries.dictionary import Dictionary
from sae_core.model.language_model import LanguageModel
from sae_core.seeds import generator_for
from sae_core.sites import FeatureId, Site


@dataclass(frozen=True, eq=False)
class RedrawnExamples:
    """A random half of the examples that another source has, to see how far results depend on them."""

    source: ExampleSource
    seed: int

    def examples(self, feature: FeatureId, n: int) -> Examples:
        """Half of the up to `2 n` examples that the source gives."""
        pool = self.source.examples(feature, 2 * n)
        drawn = torch.randperm(len(pool), generator=generator_for(self.seed, "redrawn", feature))
        rows = drawn[: -(-len(pool) // 2)].sort().values
        return Examples(pool.tokens[rows], pool.end[rows], pool.activation[rows])


@dataclass(frozen=True, eq=False)
class SpreadExamples:
    """Examples spread over the range of a feature's activations, one to a context, each at its peak there.

    The range from zero to the largest peak is cut into as many equal bins as examples are wanted, and one is drawn
    from each; empty bins give none.
    """

    model: LanguageModel
    dictionaries: Mapping[Site, Dictionary]
    contexts: Int[Tensor, "contexts pos"]
    seed: int = 0

    @torch.no_grad()
    def examples(self, feature: FeatureId, n: int, *, at_once: int = 16) -> Examples:
        """At most `n` examples with distinct texts, the strongest first."""
        peaks = []
        for chunk in self.contexts.split(at_once):
            x = self.model.record(chunk, [feature.site])[feature.site]
            f = self.dictionaries[feature.site].encode(x)[..., feature.index].cpu() * self.model.content(chunk)
            peaks.append(f.max(1))
        peak, place = (torch.cat(part) for part in zip(*peaks, strict=True))
        bins = (peak / peak.max().clamp_min(1e-30) * n).ceil().long()
        order = torch.randperm(len(peak), generator=generator_for(self.seed, "range", feature)).tolist()
        chosen: dict[int, int] = {}
        seen = set()
        for row in order:
            text = tuple(self.contexts[row, : int(place[row]) + 1].tolist())
            if peak[row] > 0 and int(bins[row]) not in chosen and text not in seen:
                chosen[int(bins[row])] = row
                seen.add(text)
        rows = torch.tensor([chosen[number] for number in sorted(chosen, reverse=True)], dtype=torch.long)
        return Examples(self.contexts[rows], place[rows], peak[rows])
