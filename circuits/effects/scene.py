"""The clean run of a target's examples (`Scene`), and runs in which something is taken from a source (`Change`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.effects.targets import Target
from circuits.features.atlas import Examples
from sae_core.errors import UserError
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site


@dataclass(frozen=True, eq=False)
class Change:
    """Some hypothetical runs of one example.

    In run `run[e]`, `amount[e]` times the direction number `row[e]` is taken from the source at `position[e]`.
    Entries are sorted by run; no two of a run share a position.
    """

    example: int
    n_runs: int
    run: Int[Tensor, "entries"]
    position: Int[Tensor, "entries"]
    row: Int[Tensor, "entries"]
    amount: Float[Tensor, "entries"]

    def parts(self, at_once: int) -> Iterator["Change"]:
        """The same runs, at most `at_once` at a time, in order."""
        starts = torch.arange(0, self.n_runs, at_once, device=self.run.device)
        first = [*torch.searchsorted(self.run, starts).tolist(), len(self.run)]
        for start, begin, end in zip(starts.tolist(), first[:-1], first[1:], strict=True):
            run, *entries = (part[begin:end] for part in (self.run, self.position, self.row, self.amount))
            yield Change(self.example, min(at_once, self.n_runs - start), run - start, *entries)

    def at_end(self, x: Float[Tensor, "d"], end: int, directions: Float[Tensor, "rows d"]) -> Float[Tensor, "runs d"]:
        """The activation at position `end` in each run, which is `x` where nothing is taken."""
        h, here = x.repeat(self.n_runs, 1), self.position == end
        h[self.run[here]] -= self.amount[here, None] * directions[self.row[here]]
        return h


@dataclass(frozen=True, eq=False)
class Scene:
    """The clean run of a target's examples, cut after the last position that is read."""

    model: LanguageModel
    source: Site
    target: Target
    tokens: Int[Tensor, "examples pos"]
    end: Int[Tensor, "examples"]
    recorded: dict[Site, Float[Tensor, "examples pos d"]]
    h: Float[Tensor, "examples d_in"]
    """The activation that the target is read from."""

    @classmethod
    def of(cls, model: LanguageModel, source: Site, target: Target, examples: Examples) -> "Scene":
        """Raises `UserError` if the source cannot affect what the target is read from."""
        if source != target.site and not model.feeds(source, target.site):
            raise UserError(f"{source} does not come before {target.site}, where {target.node} is read")
        if source == target.site and isinstance(target.node, FeatureId):
            raise UserError(f"{target.node} is a latent of {source} itself; its causes lie in earlier sites")
        end = examples.end.to(model.device)
        tokens = examples.tokens[:, : int(end.max()) + 1].to(model.device)
        before = [Site(layer) for layer in range(max(0, source.layer - 1), max(target.site.layer, source.layer + 1))]
        recorded = model.record(tokens, {source, target.site, *before})
        h = recorded[target.site][torch.arange(len(end), device=end.device), end]
        return cls(model, source, target.near(h), tokens, end, recorded, h)

    @property
    def x(self) -> Float[Tensor, "examples pos d_in"]:
        """The activation at the source."""
        return self.recorded[self.source]

    @cached_property
    def clean(self) -> Float[Tensor, "examples"]:
        """What the target reads."""
        return self.target.read(self.h, torch.arange(len(self.end), device=self.h.device))

    @property
    def gap(self) -> int:
        """Layers between source and target."""
        return self.target.site.layer - self.source.layer

    def read(self, change: Change, h: Float[Tensor, "runs d_in"]) -> Float[Tensor, "runs"]:
        """What the target reads in runs of one example, from the activations at its own position."""
        return self.target.read(h, torch.full((change.n_runs,), change.example, device=h.device))
