"""What a target would read if an activation had been another: four routes, one answer.

An ablation takes a multiple of a direction from the activation at the source, x'_p = x_p - c_p f, at some
positions p. What follows from that is computed by the cheapest of

    same place    the source adds to the activation that the target is read from
    one block     one block lies between: only the target's own position is computed, and of the others only
                  the keys and values that changed, which are linear in x' up to one number, the norm's scale:
                  ln1(x')_p = gain (xc_p - c_p fc) / s_p + offset
                  s_p^2 = (|xc_p|^2 - 2 c_p xc_p.fc + c_p^2 |fc|^2) / d + eps
                  so that W_K and W_V act once on every position and once on every direction, not on every pair
    in parts      several blocks lie between: they run again from the first position that changed on, the last of them
                  at the target's position only (`editing/engine/suffix_run.py`)
    rerun         the model runs again from the source's layer to the target's

Keys, values and the MLP are those of the model's own modules, softmax and activation functions are evaluated
in full: nothing is approximated. That `one block` and `in parts` say what the model says is checked on the
examples, and where it does not (norms after attention, windows, capped scores) `rerun` is used.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.effects.scene import Change, Scene
from circuits.effects.targets import Target
from circuits.features.atlas import Examples
from editing.engine.batching import budget_on, measure_rows_that_fit
from editing.engine.resumed_run import adds_to_residual
from editing.engine.suffix_run import SuffixRun, suffix_run
from editing.interventions.add_direction import AddDirection
from sae_core.errors import UserError
from sae_core.model.block import Block, agrees, block_of
from sae_core.model.language_model import LanguageModel
from sae_core.sites import Site, Stream


@runtime_checkable
class Route(Protocol):
    """A way from the source of a scene to its target."""

    @property
    def scene(self) -> Scene:
        """Source and target, and their clean run."""
        ...

    def table(self, directions: Float[Tensor, "rows d_in"]) -> Any:
        """What is computed once for directions before they are taken away; `values` needs it."""
        ...

    def values(self, change: Change, table: Any) -> Float[Tensor, "runs"]:
        """What the target reads in each run."""
        ...


@dataclass(frozen=True, eq=False)
class SamePlace:
    """The source adds to the activation that the target is read from: only the target's own position matters."""

    scene: Scene

    def table(self, directions: Float[Tensor, "rows d_in"]) -> Tensor:
        return directions

    def values(self, change: Change, table: Tensor) -> Float[Tensor, "runs"]:
        end = int(self.scene.end[change.example])
        return self.scene.read(change, change.at_end(self.scene.h[change.example], end, table))


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
        layer, read_at = scene.source.layer, [scene.target.site]
        if adds_to_residual(model, scene.source):
            h = model.resume(scene.recorded[Site(layer)][i, :width] - taken, layer, read_at)
        else:
            with model.hooks(AddDirection(scene.source, -taken)):
                if layer:
                    before = scene.recorded[Site(layer - 1)][i, :width].expand(change.n_runs, -1, -1)
                    h = model.resume(before, layer - 1, read_at)
                else:
                    h = model.record(scene.tokens[i, :width].expand(change.n_runs, -1), read_at)
        return scene.read(change, h[scene.target.site][:, -1])


@dataclass(frozen=True, eq=False)
class InParts(Rerun):
    """As `Rerun`, but only of the positions where something can have changed."""

    run: SuffixRun

    def values(self, change: Change, table: Tensor) -> Float[Tensor, "runs"]:
        taken = table.new_zeros(change.n_runs, int(self.scene.end[change.example]) + 1, table.shape[-1])
        taken[change.run, change.position] = change.amount[:, None] * table[change.row]
        return self.values_after(change.example, -taken)

    def values_after(self, example: int, moved: Float[Tensor, "runs pos d_in"]) -> Float[Tensor, "runs"]:
        """What the target reads in runs of an example in which its residual at the source is moved so."""
        rows = torch.full((len(moved),), example, device=moved.device)
        return self.scene.target.read(self.run.ends(rows, moved), rows)


@dataclass(frozen=True, eq=False)
class Projected:
    """Directions, and what a block's norm and attention make of them before the norm's scale is known."""

    directions: Float[Tensor, "rows d_model"]
    square: Float[Tensor, "rows"]
    """|fc|^2 in float64: with large activations the norm's scale is a small difference."""
    keys: Float[Tensor, "rows groups d_head"]
    values: Float[Tensor, "rows groups d_head"]


class OneBlock:
    """One block lies between: attention read at the target's position, keys and values anew where x changed.

    The arithmetic is `Block`'s, attention in its parts (`Block.attend` says why). Particular to this route is that runs
    have no keys and values of their own: those of the clean run serve all, and the few that change come from the linear
    parts of the module's docstring.
    """

    def __init__(self, scene: Scene, block: Block):
        self.scene, self.block = scene, block
        self.x = x = scene.recorded[Site(scene.target.site.layer - 1)]
        self.xc = x - x.mean(-1, keepdim=True) if block.centred else x
        self.square = self.xc.double().square().sum(-1)
        # W_K (gain xc) and W_V (gain xc) of every position, [examples, pos, groups, d_head], and W offset + b
        flat = (block.gain * self.xc).flatten(0, 1)
        self.key_part, self.value_part = (block.linear(w, flat).unflatten(0, x.shape[:2]) for w in (block.k, block.v))
        self.key_offset, self.value_offset = (block.affine(w, block.offset[None])[0] for w in (block.k, block.v))
        position = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        self.clean_keys, self.clean_values = self._keys_values(self.key_part, self.value_part, self.square, position)
        self.at_end = x[torch.arange(len(x), device=x.device), scene.end]
        self.queries = block.queries(self.at_end[:, None], scene.end[:, None])

    def table(self, directions: Float[Tensor, "rows d_model"]) -> Projected:
        block = self.block
        centred = directions - directions.mean(-1, keepdim=True) if block.centred else directions
        keys, values = (block.linear(w, block.gain * centred) for w in (block.k, block.v))
        return Projected(directions, centred.double().square().sum(-1), keys, values)

    def values(self, change: Change, table: Projected) -> Float[Tensor, "runs"]:
        return self.scene.read(change, self.ends(change, table))

    def ends(self, change: Change, table: Projected) -> Float[Tensor, "runs d_in"]:
        """The activation that the target is read from, in each run."""
        i, block = change.example, self.block
        end = int(self.scene.end[i])
        x = change.at_end(self.at_end[i], end, table.directions)[:, None]
        a = self._attention(change, table, x)
        stream = self.scene.target.site.stream
        if stream is Stream.ATTN_OUT:
            return a[:, 0]
        if stream is Stream.RESID_MID:
            return (x + a)[:, 0]
        if not block.parallel:
            m = block.mlp_out(x + a)
        else:  # the MLP sees nothing of what happened at other positions
            moved = change.run[change.position == end]
            m = block.mlp_out(self.at_end[i, None, None]).repeat(change.n_runs, 1, 1)
            if len(moved):
                m[moved] = block.mlp_out(x[moved])
        return (m if stream is Stream.MLP_OUT else x + a + m)[:, 0]

    def _attention(
        self, change: Change, table: Projected, x: Float[Tensor, "runs 1 d_model"]
    ) -> Float[Tensor, "runs 1 d_model"]:
        """What attention writes at the target's position.

        scores [runs, groups, served, 1, pos] are those of the clean keys, overwritten where a key changed; what heads
        read of the clean values, [runs, 1, groups, served, d_head], is corrected by pattern_p (v'_p - v_p).
        """
        i, block, (run, position, row) = change.example, self.block, (change.run, change.position, change.row)
        end, amount = int(self.scene.end[i]), change.amount
        # |x'c|^2 = |xc|^2 - 2 c xc.fc + c^2 |fc|^2, entry by entry; xc.f = xc.fc, since xc has no mean
        dot = (self.xc[i, position].double() * table.directions[row].double()).sum(-1)
        square = self.square[i, position] - 2 * amount.double() * dot + amount.double().square() * table.square[row]
        c = amount[:, None, None]
        keys, values = self._keys_values(
            self.key_part[i, position] - c * table.keys[row],
            self.value_part[i, position] - c * table.values[row],
            square,
            position,
        )
        q = self.queries[i].repeat(change.n_runs, 1, 1, 1)
        moved = run[position == end]
        if len(moved):
            q[moved] = block.queries(x[moved], torch.full_like(moved, end)[:, None])
        scores = block.scores(q, self.clean_keys[i, None, : end + 1])
        scores[run, :, :, 0, position] = block.scores(q[run], keys[:, None])[..., 0, 0]
        pattern = scores.softmax(-1)
        heads = block.mixed(pattern, self.clean_values[i, None, : end + 1])
        moved_values = (values - self.clean_values[i, position])[:, None]
        heads.index_add_(0, run, block.mixed(pattern[run, :, :, 0, position][..., None, None], moved_values))
        return block.attn_out(heads)

    def _keys_values(
        self,
        key_part: Float[Tensor, "*shape groups d_head"],
        value_part: Float[Tensor, "*shape groups d_head"],
        square: Float[Tensor, "*shape"],
        position: Int[Tensor, "*shape"],
    ) -> tuple[Float[Tensor, "*shape groups d_head"], Float[Tensor, "*shape groups d_head"]]:
        """Rotated keys, and values, from their linear parts and |xc|^2."""
        scale = self._scale(square)[..., None, None]
        keys, values = key_part * scale + self.key_offset, value_part * scale + self.value_offset
        return self.block.rotated(keys, position), values

    def _scale(self, square: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """1/s from |xc|^2."""
        return (square / self.x.shape[-1] + self.block.eps).rsqrt().to(self.x.dtype)


def route(model: LanguageModel, source: Site, target: Target, examples: Examples, *, direct: bool = False) -> Route:
    """The cheapest exact route from `source` to `target`.

    `direct`: blocks in between keep what they wrote in the clean run, and only the target's own block sees the
    change; a total effect otherwise. Raises `UserError` where the source cannot affect the target, and for
    `direct` where the source is no part of the residual.
    """
    return route_through(Scene.of(model, source, target, examples), direct=direct)


def route_through(scene: Scene, *, direct: bool = False) -> Route:
    """`route` for a scene that is made."""
    model, source, into, gap = scene.model, scene.source, scene.target.site, scene.gap
    if direct and not adds_to_residual(model, source):
        raise UserError(f"a direct effect needs a source that is added to the residual; {source} is not")
    read_at_residual = into.stream is Stream.RESID_POST
    if adds_to_residual(model, source) and (source == into or (read_at_residual and gap == 0)):
        return SamePlace(scene)
    inner = into.stream in (Stream.ATTN_Z, Stream.MLP_HIDDEN)  # not among what the closed form gives
    if adds_to_residual(model, source) and (gap == 1 or (direct and gap > 1)) and not inner:
        block = block_of(model, into.layer, scene.tokens.shape[1])
        if block is not None:
            closed = OneBlock(scene, block)
            if _agrees(closed):
                return closed
    if direct and gap > 1:
        raise UserError(f"direct effects over several blocks need blocks of known parts; those of {model.name} are not")
    if adds_to_residual(model, source) and read_at_residual and gap > 1:
        layer, recorded = source.layer, scene.recorded
        parts = suffix_run(model, scene.tokens, scene.end, layer, to=into.layer, recorded=recorded)
        if parts is not None:
            return InParts(scene, parts)
    return Rerun(scene)


def _agrees(closed: OneBlock) -> bool:
    """Whether a run in which nothing is taken away is the clean run."""
    h, empty = closed.scene.h, torch.zeros(0, dtype=torch.long, device=closed.x.device)
    table = closed.table(closed.x.new_zeros(1, closed.x.shape[-1]))
    ends = [closed.ends(Change(i, 1, empty, empty, empty, closed.x.new_zeros(0)), table) for i in range(len(h))]
    return agrees(torch.cat(ends), h)


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

    return measure_rows_that_fit(attempt, budget_on(scene.x.device) if budget is None else budget)
