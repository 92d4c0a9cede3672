"""What a target would read if an activation had been another: three routes, one answer.

An ablation takes a multiple of a direction from the activation at the source, x'_p = x_p - c_p f, at some
positions p. What follows from that is computed by the cheapest of

    same place    the source adds to the activation that the target is read from
    one block     one block lies between: only the target's own position is computed, and of the others only
                  the keys and values that changed, which are linear in x' up to one number, the norm's scale:
                  ln1(x')_p = gain (xc_p - c_p fc) / s_p + offset
                  s_p^2 = (|xc_p|^2 - 2 c_p xc_p.fc + c_p^2 |fc|^2) / d + eps
                  so that W_K and W_V act once on every position and once on every direction, not on every pair
    rerun         the model runs again from the source's layer to the target's

Keys, values and the MLP are those of the model's own modules, softmax and activation functions are evaluated
in full: nothing is approximated. That `one block` says what the model says is checked on the clean run of
the examples, and where it does not (norms after attention, windows, capped scores) `rerun` is used.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.effects.targets import Target
from circuits.features.atlas import Examples
from editing.engine.batching import budget_on, rows_at_once
from sae_core.errors import UserError
from sae_core.model.block import Block, block_of
from sae_core.model.language_model import LanguageModel
from sae_core.sites import FeatureId, Site, Stream

AGREES = 1e-4
"""Largest difference, relative to the largest activation, with which `one block` counts as the model's own."""


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
        if 0 < self.n_runs <= at_once:
            yield self
            return
        starts = range(0, self.n_runs, at_once)
        edges = torch.searchsorted(self.run, torch.tensor([*starts, self.n_runs], device=self.run.device)).tolist()
        for number, start in enumerate(starts):
            own = slice(edges[number], edges[number + 1])
            n_runs = min(at_once, self.n_runs - start)
            entries = (self.run[own] - start, self.position[own], self.row[own], self.amount[own])
            yield Change(self.example, n_runs, *entries)


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
        before = [Site(layer) for layer in (source.layer - 1, source.layer, target.site.layer - 1) if layer >= 0]
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

    def adds(self) -> bool:
        """Whether what is taken from the source is taken from the residual after its block, and nothing else is."""
        stream = self.source.stream
        direct = stream in (Stream.RESID_POST, Stream.MLP_OUT)
        return direct or (
            stream is Stream.ATTN_OUT and not self.model.feeds(self.source, Site(self.source.layer, Stream.MLP_OUT))
        )


@runtime_checkable
class Route(Protocol):
    """A way from the source of a scene to its target."""

    scene: Scene

    def table(self, directions: Float[Tensor, "rows d_in"]) -> object:
        """What is to be known of directions before they are taken away; given to `values`."""
        ...

    def values(self, change: Change, table: object) -> Float[Tensor, "runs"]:
        """What the target reads in each run."""
        ...


@dataclass(frozen=True, eq=False)
class SamePlace:
    """The source adds to the activation that the target is read from: only the target's own position matters."""

    scene: Scene

    def table(self, directions: Float[Tensor, "rows d_in"]) -> Tensor:
        return directions

    def values(self, change: Change, table: Tensor) -> Float[Tensor, "runs"]:
        h = _taken(self.scene.h[change.example], change, int(self.scene.end[change.example]), table)
        return self.scene.target.read(h, torch.full((change.n_runs,), change.example, device=h.device))


@dataclass(frozen=True, eq=False)
class Rerun:
    """The model, run again from the source's layer to the target's, up to the target's position."""

    scene: Scene

    def table(self, directions: Float[Tensor, "rows d_in"]) -> Tensor:
        return directions

    def values(self, change: Change, table: Tensor) -> Float[Tensor, "runs"]:
        scene, i = self.scene, change.example
        width, model = int(scene.end[i]) + 1, scene.model
        taken = table.new_zeros(change.n_runs, width, table.shape[-1])
        taken[change.run, change.position] = change.amount[:, None] * table[change.row]
        layer, wanted = scene.source.layer, [scene.target.site]
        if scene.adds():
            h = model.resume(scene.recorded[Site(layer)][i, :width] - taken, layer, wanted)
        else:
            with model.hooks(_Take(scene.source, taken)):
                if layer:
                    before = scene.recorded[Site(layer - 1)][i, :width].expand(change.n_runs, -1, -1)
                    h = model.resume(before, layer - 1, wanted)
                else:
                    h = model.record(scene.tokens[i, :width].expand(change.n_runs, -1), wanted)
        return scene.target.read(h[scene.target.site][:, -1], torch.full((change.n_runs,), i, device=taken.device))


@dataclass(frozen=True, eq=False)
class Projected:
    """Directions, and what a block's norm and attention make of them before the norm's scale is known."""

    directions: Float[Tensor, "rows d_model"]
    square: Float[Tensor, "rows"]
    """|fc|^2 in float64: with large activations the norm's scale is a small difference."""
    keys: Float[Tensor, "rows groups d_head"]
    values: Float[Tensor, "rows groups d_head"]


class OneBlock:
    """One block lies between: attention read at the target's position, keys and values anew where x changed."""

    def __init__(self, scene: Scene, block: Block):
        self.scene, self.block = scene, block
        self.x = x = scene.recorded[Site(scene.target.site.layer - 1)]
        self.xc = x - x.mean(-1, keepdim=True) if block.centred else x
        self.square = self.xc.double().square().sum(-1)
        flat = (block.gain * self.xc).flatten(0, 1)
        self.key_part, self.value_part = (self._split(block.linear(w, flat), x.shape[:2]) for w in (block.k, block.v))
        offset = block.offset[None, None]
        self.key_offset, self.value_offset = (self._split(w(offset)[0], (1,))[0] for w in (block.k, block.v))
        scale = self._scale(self.square)[..., None, None]
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        keys = (self.key_part * scale + self.key_offset).flatten(0, 1)
        self.keys = block.turned(keys, positions.flatten()).unflatten(0, x.shape[:2])
        self.values_ = self.value_part * scale + self.value_offset
        self.at_end = x[torch.arange(len(x), device=x.device), scene.end]
        self.queries = block.queries(self.at_end, scene.end)

    def _split(self, rows: Tensor, shape) -> Float[Tensor, "*shape groups d_head"]:
        return rows.unflatten(-1, (self.block.n_groups, -1)).reshape(*shape, self.block.n_groups, -1)

    def _scale(self, square: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """1/s from |xc|^2."""
        return (square / self.x.shape[-1] + self.block.eps).rsqrt().to(self.x.dtype)

    def table(self, directions: Float[Tensor, "rows d_model"]) -> Projected:
        centred = directions - directions.mean(-1, keepdim=True) if self.block.centred else directions
        parts = (
            self._split(self.block.linear(w, self.block.gain * centred), (len(directions),))
            for w in (self.block.k, self.block.v)
        )
        return Projected(directions, centred.double().square().sum(-1), *parts)

    def values(self, change: Change, table: Projected) -> Float[Tensor, "runs"]:
        return self.scene.target.read(
            self.ends(change, table), torch.full((change.n_runs,), change.example, device=self.x.device)
        )

    def ends(self, change: Change, table: Projected) -> Float[Tensor, "runs d_in"]:
        """The activation that the target is read from, in each run."""
        i, block = change.example, self.block
        end = int(self.scene.end[i])
        x = _taken(self.at_end[i], change, end, table.directions)
        a = self._attention(change, table, x)
        stream = self.scene.target.site.stream
        if stream is Stream.ATTN_OUT:
            return a
        if not block.parallel:
            m = block.mlp_out(x + a)
        else:  # the MLP sees nothing of what happened at other positions
            moved = change.run[change.position == end]
            m = block.mlp_out(self.at_end[i, None]).repeat(change.n_runs, 1)
            if len(moved):
                m[moved] = block.mlp_out(x[moved])
        return m if stream is Stream.MLP_OUT else x + a + m

    def _attention(self, change: Change, table: Projected, x: Tensor) -> Float[Tensor, "runs d_model"]:
        """What attention writes at the target's position."""
        i, block, (run, position, row) = change.example, self.block, (change.run, change.position, change.row)
        end, amount = int(self.scene.end[i]), change.amount
        dot = (self.xc[i, position].double() * table.directions[row].double()).sum(-1)
        square = self.square[i, position] - 2 * amount.double() * dot + amount.double().square() * table.square[row]
        scale, c = self._scale(square)[:, None, None], amount[:, None, None]
        keys = (self.key_part[i, position] - c * table.keys[row]) * scale + self.key_offset
        values = (self.value_part[i, position] - c * table.values[row]) * scale + self.value_offset

        q = self.queries[i].repeat(change.n_runs, 1, 1)
        moved = run[position == end]
        if len(moved):
            q[moved] = block.queries(x[moved], torch.full_like(moved, end))
        q = q.unflatten(1, (block.n_groups, -1)) * q.shape[-1] ** -0.5  # [runs, groups, queries of a group, d_head]
        scores = torch.einsum("rgqd,pgd->rgqp", q, self.keys[i, : end + 1])
        turned = block.turned(keys, position)
        scores[run, :, :, position] = torch.einsum("egqd,egd->egq", q[run], turned)
        pattern = scores.softmax(-1)
        heads = torch.einsum("rgqp,pgd->rgqd", pattern, self.values_[i, : end + 1])
        new = pattern[run, :, :, position][..., None] * (values - self.values_[i, position])[:, :, None]
        heads.index_add_(0, run, new)
        return block.o(heads.flatten(1)[:, None])[:, 0]


def route(model: LanguageModel, source: Site, target: Target, examples: Examples, *, direct: bool = False) -> Route:
    """The cheapest exact route from `source` to `target`.

    `direct`: blocks in between keep what they wrote in the clean run, and only the target's own block sees the
    change; a total effect otherwise. Raises `UserError` where the source cannot affect the target, and for
    `direct` where the source is no part of the residual.
    """
    scene = Scene.of(model, source, target, examples)
    into, gap = target.site, scene.gap
    if direct and not scene.adds():
        raise UserError(f"a direct effect needs a source that is added to the residual; {source} is not")
    read_at_residual = into.stream is Stream.RESID_POST
    if scene.adds() and (source == into or (read_at_residual and gap == 0)):
        return SamePlace(scene)
    if scene.adds() and (gap == 1 or (direct and gap > 1)) and into.stream is not Stream.MLP_HIDDEN:
        block = block_of(model, into.layer, scene.tokens.shape[1])
        if block is not None:
            closed = OneBlock(scene, block)
            if _agrees(closed):
                return closed
    if direct and gap > 1:
        raise UserError(f"direct effects over several blocks need blocks of known parts; those of {model.name} are not")
    return Rerun(scene)


def _agrees(closed: OneBlock) -> bool:
    """Whether a run in which nothing is taken away is the clean run."""
    h, empty = closed.scene.h, torch.zeros(0, dtype=torch.long, device=closed.x.device)
    table = closed.table(closed.x.new_zeros(1, closed.x.shape[-1]))
    found = [closed.ends(Change(i, 1, empty, empty, empty, closed.x.new_zeros(0)), table) for i in range(len(h))]
    return bool((torch.cat(found) - h).abs().max() <= AGREES * h.abs().max())


def runs_at_once(route: Route, table: object, budget: int | None = None) -> int:
    """How many runs of the longest example a call of `values` may have within `budget` bytes, by measurement.

    By default the budget is that of the device.
    """
    scene = route.scene
    i = int(scene.end.argmax())
    places = torch.arange(int(scene.end[i]) + 1, device=scene.x.device)

    def attempt(n: int) -> None:
        run = torch.arange(n, device=places.device).repeat_interleave(len(places))
        position = places.repeat(n)
        route.values(
            Change(i, n, run, position, torch.zeros_like(run), torch.full_like(run, 1e-3, dtype=scene.x.dtype)), table
        )

    return rows_at_once(attempt, budget_on(scene.x.device) if budget is None else budget)


@dataclass(frozen=True, eq=False)
class _Take:
    """The intervention that takes a tensor away."""

    site: Site
    taken: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        return h - self.taken


def _taken(at_end: Tensor, change: Change, end: int, directions: Tensor) -> Float[Tensor, "runs d"]:
    """The activation at the target's position, in each run."""
    h = at_end.repeat(change.n_runs, 1)
    here = change.position == end
    h[change.run[here]] -= change.amount[here, None] * directions[change.row[here]]
    return h
