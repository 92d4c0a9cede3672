"""Prompts run once, to be run again under edits from the edited layer upward.

Rows are prompts by number: one prompt can stand in a pass many times, each time under another edit. Blocks below
the edit are never run again, and logits are computed at the prompts' ends only.
"""

from collections.abc import Iterable, Sequence

from jaxtyping import Float, Int
from torch import Tensor

from editing.tasks.pairs import at_end
from sae_core.model.language_model import Intervention, LanguageModel
from sae_core.sites import Site, Stream


def adds_to_residual(model: LanguageModel, site: Site) -> bool:
    """Whether a change at the site is the same change of the residual after its block, as nothing between reads it.

    So it is for the residual itself and for what the MLP writes, and for what attention writes where blocks are
    parallel: elsewhere the MLP of the same block reads it.
    """
    if site.stream is Stream.ATTN_OUT:
        return not model.feeds(site, Site(site.layer, Stream.MLP_OUT))
    return site.stream in (Stream.MLP_OUT, Stream.RESID_POST)


class ResumedRun:
    """One run of prompts, recorded at `sites`, and the same run with edits at `layer` or above."""

    def __init__(
        self,
        model: LanguageModel,
        tokens: Int[Tensor, "batch pos"],
        end: Int[Tensor, "batch"],
        layer: int,
        sites: Iterable[Site],
    ):
        self.model, self.layer = model, layer
        self.tokens, self.end, self.last = tokens.to(model.device), end.to(model.device), model.sites()[-1]
        below, after = Site(layer - 1), Site(layer)
        self.recorded = model.record(tokens, {*sites, after, self.last} | ({below} if layer else set()))
        self.below, self.after = self.recorded.get(below), self.recorded[after]
        """The residual below and after the layer; below the first there is none."""
        self.logits: Float[Tensor, "batch vocab"] = model.unembed(at_end(self.recorded[self.last], self.end))
        """At the prompts' ends, unedited."""

    def logits_under(self, prompts: Int[Tensor, "rows"], edits: Sequence[Intervention]) -> Float[Tensor, "rows vocab"]:
        """Logits at the ends under edits, which get the rows in the order of `prompts`."""
        with self.model.hooks(*edits):
            if self.below is None:
                final = self.model.record(self.tokens[prompts], [self.last])[self.last]
            else:
                final = self.model.final(self.below[prompts], self.layer - 1)
        return self.model.unembed(at_end(final, self.end[prompts]))

    def logits_changed(
        self, prompts: Int[Tensor, "rows"], change: Float[Tensor, "rows pos d"]
    ) -> Float[Tensor, "rows vocab"]:
        """Logits at the ends with `change` added to the residual after the layer."""
        final = self.model.final(self.after[prompts] + change, self.layer)
        return self.model.unembed(at_end(final, self.end[prompts]))
